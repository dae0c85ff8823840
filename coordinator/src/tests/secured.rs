//! A coordinator with certificates, for tests.

use std::sync::Arc;
use std::time::Duration;

use coxswain_proto::wire;
use coxswain_transport::tls::{ClientTls, Credentials, Secret, Transport};
use coxswain_transport::{connect_over, jobs_client};
use rcgen::KeyPair;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use super::JOB;
use super::fake::{Faults, work};
use super::tunnel::tunnel;
use crate::access::Joining;
use crate::admin::PlainDoor;
use crate::auth::identity::Principal;
use crate::auth::members::Membership;
use crate::auth::pods::tests::pods;
use crate::tls::authority::{Authority, DAY};
use crate::tls::config::TlsFolder;
use crate::view::hub::Hub;
use crate::{driver, service};

/// A coordinator with certificates, and the CA that makes more.
pub(super) struct Secured {
    pub(super) authority: Authority,
    pub(super) members: Arc<Membership>,
    pub(super) url: String,
    pub(super) page_url: String,
    pub(super) folder: tempfile::TempDir,
    _tasks: [JoinHandle<anyhow::Result<()>>; 2],
    _page: JoinHandle<()>,
}

impl Secured {
    pub(super) async fn start() -> Secured {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("test", DAY).unwrap();
        let key = KeyPair::generate().unwrap();
        let chain = authority.server(&["127.0.0.1".to_owned()], &key, DAY).unwrap();
        let ca = authority.pem().to_owned();
        let server = Credentials { ca: ca.clone(), chain, key: Secret::new(key.serialize_pem()) };
        let own = Authority::open(ca, &authority.key()).unwrap();
        let data_dir = folder.path().join("coordinator");
        let keys = folder.path().join("jwks.json");
        let joining = Joining { chain_life: DAY, pods: Some(pods(keys)) };
        let (handle, store, driver) = driver::start(&data_dir, driver::LeftOver::Continue).unwrap();
        let secure = service::Secure::open(TlsFolder { authority: own, server }, &data_dir, joining).unwrap();
        let members = secure.members().clone();
        let listener = service::listen("127.0.0.1:0", true).await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let hub = Hub::new(handle.clone());
        let access = service::Access::Secure(secure);
        let any_port = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
        let page = super::page::options("0.0.0.0:0").open(any_port, true).await.unwrap().unwrap();
        let page_url = page.url();
        let page = page.serve(hub.clone(), PlainDoor::Owner, access.tls());
        let port = service::Port { listener, access, roots: None, hub };
        let served = tokio::spawn(service::serve_on(port, handle, store, std::future::pending()));
        Secured { authority, members, url, page_url, folder, _tasks: [driver, served], _page: page }
    }

    /// The transport of someone with a certificate of this CA.
    pub(super) fn transport(&self, uri: &str) -> Transport {
        Transport::Tls(self.tls(uri))
    }

    pub(super) fn tls(&self, uri: &str) -> ClientTls {
        ClientTls::new(&self.credentials(&self.authority, uri, DAY)).unwrap()
    }

    /// Credentials by any CA, of someone who trusts this one.
    pub(super) fn credentials(&self, by: &Authority, uri: &str, life: Duration) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let chain = by.client(&Principal::from_uri(uri).unwrap(), &key, life).unwrap();
        Credentials { ca: self.authority.pem().to_owned(), chain, key: Secret::new(key.serialize_pem()) }
    }

    pub(super) async fn channel(&self, uri: &str) -> Channel {
        connect_over(&self.url, &self.transport(uri)).await.unwrap()
    }

    pub(super) async fn submit(&self, sets: &[&str]) -> String {
        let request = wire::SubmitRequest {
            manifest: JOB.to_owned(),
            origin: "job.yaml".to_owned(),
            base: "/".to_owned(),
            directory: self.folder.path().join("run").to_str().unwrap().to_owned(),
            sets: sets.iter().map(|set| (*set).to_owned()).collect(),
            ..Default::default()
        };
        let channel = self.channel("coxswain://submitter/sue/job/tiny-*").await;
        jobs_client(channel).submit(request).await.unwrap().into_inner().job
    }

    pub(super) fn work(&self, uri: &str, name: &str) -> JoinHandle<Result<String, String>> {
        let (url, tls, name) = (self.url.clone(), self.tls(uri), name.to_owned());
        tokio::spawn(async move { work(&tunnel(&url, tls).await, &name, Faults::default()).await })
    }
}
