//! The life of a certificate over real TLS: joins, renewals, revocations.

use std::time::Duration;

use coxswain_proto::wire;
use coxswain_transport::tls::enroll::{self, EnrollError, Enrolled, Ticket};
use coxswain_transport::tls::{ClientTls, Credentials, JoinToken, Secret, Transport};
use coxswain_transport::{access_client, cluster_client, connect_over, jobs_client};
use rcgen::KeyPair;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::secured::Secured;
use crate::auth::chains::IssuedCertificate;
use crate::auth::identity::Principal;
use crate::auth::members::Signed;
use crate::auth::now_s;
use crate::auth::pods::tests::{Signer, claims, header};
use crate::tls::authority::shown;

const ADMIN: &str = "coxswain://admin/ann/job/*";

impl Secured {
    async fn token(&self, role: &str, uses: u32) -> JoinToken {
        let request =
            wire::CreateTokenRequest { role: role.to_owned(), jobs: "*".to_owned(), ttl_s: 60, uses };
        let reply = access_client(self.channel(ADMIN).await).create_token(request).await.unwrap();
        reply.into_inner().token.parse().unwrap()
    }

    async fn revoke(&self, name: &str, role: &str, undo: bool) -> Result<(), Status> {
        let request = wire::RevokeRequest { name: name.to_owned(), role: role.to_owned(), undo };
        access_client(self.channel(ADMIN).await).revoke(request).await.map(drop)
    }

    async fn by(&self, credentials: &Credentials) -> (ClientTls, Channel) {
        let tls = ClientTls::new(credentials).unwrap();
        let channel = connect_over(&self.url, &Transport::Tls(tls.clone())).await.unwrap();
        (tls, channel)
    }
}

/// How a call of a worker ends that is let through: there is no such generation.
async fn call(channel: &Channel) -> Status {
    let get = wire::StoreGetRequest { job: "tiny-1".to_owned(), generation: 1, key: vec![1], wait_ms: 0 };
    cluster_client(channel.clone()).store_get(get).await.unwrap_err()
}

fn refused(result: Result<Enrolled, EnrollError>) -> (Code, String) {
    match result {
        Err(EnrollError::Refused(status)) => (status.code(), status.message().to_owned()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_over_its_own_connection() {
    let site = Secured::start().await;
    let token = site.token("worker", 1).await;
    let key = KeyPair::generate().unwrap();
    let sign = |identity: &Principal| {
        let pem = site.authority.client(identity, &key, Duration::from_secs(2))?;
        let shown = shown(&coxswain_transport::tls::client::certificates("it", &pem)?[0])?;
        Ok(Signed { pem, made: IssuedCertificate { digest: shown.digest, ends_s: shown.ends_s } })
    };
    let (identity, chain) = site.members.join(token.spoken().expose(), "w0", sign).unwrap();
    let ca = site.authority.pem().to_owned();
    let short = Credentials { ca, chain, key: Secret::new(key.serialize_pem()) };
    let (tls, channel) = site.by(&short).await;
    let (other, without) = site.by(&short).await;
    let enrolled = enroll::renew(channel.clone(), &tls).await.unwrap();
    let der = coxswain_transport::tls::client::certificates("it", &enrolled.credentials.chain).unwrap();
    assert_eq!(shown(&der[0]).unwrap().identity, identity);
    assert_eq!(enrolled.lives.as_secs(), 3600);
    // Whoever renews a certificate has it, so the connection lasts as long as that one.
    let enrolled = enroll::renew(channel.clone(), &tls).await.unwrap();
    tokio::time::sleep(Duration::from_millis(3200)).await;
    assert_eq!(call(&channel).await.code(), Code::FailedPrecondition);
    // The other connection has ended with its certificate; a channel connects again by the newer one.
    call(&without).await;
    other.replace(&enrolled.credentials.chain, &enrolled.credentials.key).unwrap();
    let answer = call(&without).await;
    assert_eq!(answer.code(), Code::FailedPrecondition, "{answer}");
    // The newest is renewed over the connection of the first.
    enroll::renew(channel, &tls).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_certificate_is_found_out_and_a_lost_answer_is_not_a_theft() {
    let site = Secured::start().await;
    let token = site.token("worker", 2).await;
    let first = enroll::join(&site.url, &token, "w0").await.unwrap().credentials;
    // The answer is lost, and the worker asks again.
    let (_, channel) = site.by(&first).await;
    enroll::renew(channel, &ClientTls::new(&first).unwrap()).await.unwrap();
    let (tls, channel) = site.by(&first).await;
    let newer = enroll::renew(channel.clone(), &tls).await.unwrap().credentials;
    // It connects anew, by the newer one; a thief has the older.
    site.by(&newer).await;
    let (stolen, thief) = site.by(&first).await;
    let (code, why) = refused(enroll::renew(thief.clone(), &stolen).await);
    assert!(code == Code::PermissionDenied && why.contains("certs revoke w0 --role worker"), "{code}: {why}");
    let (_, why) = refused(enroll::renew(channel, &tls).await);
    assert!(why.contains("neither is renewed any more"), "{why}");
    // What another connection was given is not renewed over this one.
    let (_, why) = refused(enroll::renew(thief, &tls).await);
    assert!(why.contains("of another certificate"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_lost_on_a_connection_that_stays() {
    let site = Secured::start().await;
    let token = site.token("worker", 1).await;
    let (tls, channel) = site.by(&enroll::join(&site.url, &token, "w0").await.unwrap().credentials).await;
    let newer = enroll::renew(channel.clone(), &tls).await.unwrap().credentials;
    // The answer is lost: the worker stays with the one that it has.
    enroll::renew(channel.clone(), &tls).await.unwrap();
    tls.replace(&newer.chain, &newer.key).unwrap();
    for _ in 0..2 {
        enroll::renew(channel.clone(), &tls).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_revoked_is_cut_off_at_once_and_joins_again_once_it_is_lifted() {
    let site = Secured::start().await;
    let token = site.token("worker", 3).await;
    let credentials = enroll::join(&site.url, &token, "w0").await.unwrap().credentials;
    let (_, channel) = site.by(&credentials).await;
    assert_eq!(call(&channel).await.code(), Code::FailedPrecondition);
    let stream = cluster_client(channel.clone()).sync(tokio_stream::pending()).await.unwrap();
    site.revoke("w0", "worker", false).await.unwrap();
    let cut = tokio::time::timeout(Duration::from_secs(3), stream.into_inner().message()).await;
    assert!(!matches!(cut.unwrap(), Ok(Some(_))), "its stream ends at once");
    for channel in [channel, site.by(&credentials).await.1] {
        let mut answer = call(&channel).await;
        if std::error::Error::source(&answer).is_some() || answer.code() == Code::Cancelled {
            // It met the end of its connection.
            answer = call(&channel).await;
        }
        assert_eq!(answer.code(), Code::PermissionDenied, "{answer}");
        assert!(answer.message().contains("was revoked"), "{answer}");
    }
    let (code, why) = refused(enroll::join(&site.url, &token, "w0").await);
    assert!(code == Code::PermissionDenied && why.contains("--undo"), "{code}: {why}");
    let list = access_client(site.channel(ADMIN).await).revoked(wire::RevokedRequest {}).await.unwrap();
    let list = list.into_inner().revoked;
    assert_eq!((list.len(), list[0].name.as_str(), list[0].by.as_str()), (1, "w0", "admin ann"));

    site.revoke("w0", "", true).await.unwrap();
    assert_eq!(site.revoke("w0", "", true).await.unwrap_err().code(), Code::NotFound);
    // What was made in the second of the revocation is refused as well.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let again = enroll::join(&site.url, &token, "w0").await.unwrap().credentials;
    assert_eq!(call(&site.by(&again).await.1).await.code(), Code::FailedPrecondition);
    assert_eq!(call(&site.by(&credentials).await.1).await.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_without_a_worker_that_is_revoked_and_a_person_is_refused() {
    let site = Secured::start().await;
    let job = site.submit(&["train.steps=100000"]).await;
    let _workers = ["w0", "w1"].map(|name| site.work(&format!("coxswain://worker/{name}/job/*"), name));
    let mut jobs = jobs_client(site.channel("coxswain://viewer/vic/job/*").await);
    let get = wire::GetRequest { job };
    while jobs.get(get.clone()).await.unwrap().into_inner().step < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    site.revoke("w1", "worker", false).await.unwrap();
    loop {
        let summary = jobs.get(get.clone()).await.unwrap().into_inner();
        if summary.state() == wire::JobState::Gathering {
            assert!(summary.reason.starts_with("waiting for 1 of 2 workers"), "{}", summary.reason);
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    site.revoke("vic", "viewer", false).await.unwrap();
    jobs.get(get.clone()).await.unwrap_err();
    let error = jobs.get(get).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    let error = site.revoke("ann", "", false).await.unwrap_err();
    assert!(error.message().contains("lock itself out"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_joins_by_its_service_account_and_again_after_a_restart() {
    let site = Secured::start().await;
    let signer = Signer::new();
    let ca = site.folder.path().join("ca.pem");
    std::fs::write(&ca, site.authority.pem()).unwrap();
    let ticket = |exp| Ticket::read(&signer.sign(&header(), &claims(exp)), Some(&ca)).unwrap();
    let good = ticket(now_s() + 600);
    let (code, why) = refused(good.join(&site.url, "worker-1").await);
    assert!(code == Code::Unavailable && why.contains("log says why"), "{why}");
    std::fs::write(site.folder.path().join("jwks.json"), signer.keys().to_string()).unwrap();
    for _ in 0..2 {
        let credentials = good.join(&site.url, "worker-1").await.unwrap().credentials;
        let (tls, channel) = site.by(&credentials).await;
        enroll::renew(channel, &tls).await.unwrap();
    }
    let (code, why) = refused(ticket(now_s()).join(&site.url, "worker-1").await);
    assert!(code == Code::Unauthenticated && why.contains("has expired"), "{why}");
    let mut other = claims(now_s() + 600);
    other["sub"] = "system:serviceaccount:train:other".into();
    let other = Ticket::read(&signer.sign(&header(), &other), Some(&ca)).unwrap();
    let (code, why) = refused(other.join(&site.url, "worker-1").await);
    assert!(code == Code::PermissionDenied && why.contains("not allowed to join"), "{code}: {why}");
    good.join(&site.url, "worker-1-1").await.unwrap();
    site.revoke("worker-1", "", false).await.unwrap();
    for name in ["worker-1", "worker-1-1"] {
        assert_eq!(refused(good.join(&site.url, name).await).0, Code::PermissionDenied);
    }
    let error = Ticket::read("eyJh.b.c", None).unwrap_err().to_string();
    assert!(error.contains("--tls-ca"), "{error}");
    // The CA of another coordinator.
    let other = Secured::start().await;
    assert!(matches!(good.join(&other.url, "worker-1").await, Err(EnrollError::Connect(_))));
}
