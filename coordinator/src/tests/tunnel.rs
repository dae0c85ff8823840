//! A port in plain text before one that speaks TLS, so that workers which know no TLS can play.

use std::net::Ipv4Addr;

use coxswain_transport::tls::ClientTls;
use tokio::net::TcpListener;

/// Opens it on this machine for a caller with the credentials of `tls`; returns its address.
pub(crate) async fn tunnel(url: &str, tls: ClientTls) -> String {
    let port: u16 = url.rsplit(':').next().unwrap().parse().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut plain, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let Ok(mut secure) = tls.connect("127.0.0.1", port).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut plain, &mut secure).await;
            });
        }
    });
    address
}
