//! A certificate authority: ECDSA over P-256. It signs what it is told to; who may have what is decided
//! elsewhere.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use coxswain_transport::tls::Secret;
use coxswain_transport::tls::client::certificates;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use crate::auth::Shown;
use crate::auth::digest::Digest;
use crate::auth::identity::Principal;

/// How much the clocks of machines may differ: a certificate is good that long before it was made.
const SKEW: Duration = Duration::from_secs(300);

/// A day.
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// A CA and its key.
pub(crate) struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// A new one.
    pub(crate) fn new(name: &str, life: Duration) -> Result<Authority> {
        let key = KeyPair::generate().context("a key for the CA")?;
        let mut params = params(name, life);
        // What it signs signs nothing itself.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).context("the CA's certificate")?;
        Authority::of(certificate.pem(), certificate.der().clone(), key)
    }

    /// One from its files' texts.
    pub(crate) fn open(pem: String, key: &Secret) -> Result<Authority> {
        let der = certificates("the CA", &pem)?.swap_remove(0);
        let key = KeyPair::from_pem(key.expose()).context("the CA's key")?;
        let (_, parsed) = X509Certificate::from_der(&der).context("the CA's certificate")?;
        let spki = parsed.public_key().subject_public_key.data.as_ref();
        if spki != key.der_bytes() {
            bail!("the CA's key is not that of its certificate");
        }
        Authority::of(pem, der, key)
    }

    fn of(pem: String, der: CertificateDer<'static>, key: KeyPair) -> Result<Authority> {
        let issuer = Issuer::from_ca_cert_der(&der, key).context("the CA's certificate")?;
        Ok(Authority { pem, der, issuer })
    }

    /// Its certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Its certificate as DER.
    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Its key.
    pub(crate) fn key(&self) -> Secret {
        Secret::new(self.issuer.key().serialize_pem())
    }

    /// A certificate of a server that is reached by these names and addresses.
    pub(crate) fn server(
        &self,
        hosts: &[String],
        key: &impl PublicKeyData,
        life: Duration,
    ) -> Result<String> {
        let mut params = params("coxswain coordinator", life);
        params.subject_alt_names = CertificateParams::new(hosts)
            .with_context(|| format!("{} are not names or addresses of hosts", hosts.join(", ")))?
            .subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, key)
    }

    /// A certificate of someone who calls.
    pub(crate) fn client(
        &self,
        identity: &Principal,
        key: &impl PublicKeyData,
        life: Duration,
    ) -> Result<String> {
        let mut params = params(&identity.name, life);
        params.subject_alt_names = vec![SanType::URI(identity.uri().try_into().context("an identity")?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, key)
    }

    fn sign(&self, mut params: CertificateParams, key: &impl PublicKeyData) -> Result<String> {
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        Ok(params.signed_by(key, &self.issuer).context("signing a certificate")?.pem())
    }
}

/// The public key of a certificate request, whose sender has proved to have the private one. Nothing
/// else of the request is taken.
pub(crate) fn requested_key(request: &str) -> Result<impl PublicKeyData> {
    let request = CertificateSigningRequestParams::from_pem(request).map_err(|error| {
        anyhow!("the certificate request cannot be used ({error}); it has to be PEM, signed by its own key")
    })?;
    Ok(request.public_key)
}

/// Who a caller's certificate is for, and since and until when. That the certificate is by the CA has been
/// checked before.
pub(crate) fn shown(der: &CertificateDer<'_>) -> Result<Shown> {
    let (_, certificate) = X509Certificate::from_der(der).context("not a valid certificate")?;
    let names = certificate.subject_alternative_name().context("its names")?.context("it has no name")?;
    let uris: Vec<&str> = names
        .value
        .general_names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    let [uri] = uris[..] else { bail!("it names {} identities, not one", uris.len()) };
    let seconds = |time: ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let validity = certificate.validity();
    Ok(Shown {
        identity: Principal::from_uri(uri)?,
        digest: Digest::of(der),
        made_s: seconds(validity.not_before) + SKEW.as_secs(),
        ends_s: seconds(validity.not_after),
    })
}

/// The names and addresses that a server's certificate (PEM) is for.
pub(crate) fn hosts_of(pem: &str) -> Result<Vec<String>> {
    let certificate = certificates("the certificate", pem)?.swap_remove(0);
    let (_, certificate) = X509Certificate::from_der(&certificate).context("the certificate")?;
    let names = certificate.subject_alternative_name().context("its names")?.context("it has no name")?;
    let host = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Ok((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let address = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = address.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            Ok(address.context("it has an address that is none")?.to_string())
        }
        other => bail!("it is for {other:?}, and a coordinator's is for names and addresses"),
    };
    names.value.general_names.iter().map(host).collect()
}

/// Until when a certificate (PEM) is good, in seconds of Unix time.
pub(crate) fn expires_s(pem: &str) -> Result<u64> {
    let certificate = certificates("the certificate", pem)?.swap_remove(0);
    let (_, certificate) = X509Certificate::from_der(&certificate).context("the certificate")?;
    Ok(u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0))
}

fn params(name: &str, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - SKEW, now + life);
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::now_s;

    #[test]
    fn a_certificate_says_who_it_is_for_and_the_ca_survives_its_files() {
        let authority = Authority::new("test", DAY).unwrap();
        let again = Authority::open(authority.pem().to_owned(), &authority.key()).unwrap();
        assert_eq!(again.der(), authority.der());
        let identity = Principal::from_uri("coxswain://worker/w0/job/demo-*").unwrap();
        let key = KeyPair::generate().unwrap();
        let pem = again.client(&identity, &key, DAY).unwrap();
        let der = certificates("it", &pem).unwrap().swap_remove(0);
        let found = shown(&der).unwrap();
        assert_eq!(found.identity, identity);
        assert!(found.ends_s.abs_diff(now_s() + 24 * 3600) < 60 && found.made_s.abs_diff(now_s()) < 60);
        let server = authority.server(&["localhost".to_owned()], &key, DAY).unwrap();
        assert_eq!(hosts_of(&server).unwrap(), ["localhost"]);
        assert!(hosts_of(&pem).is_err());
        assert!(shown(&certificates("it", &server).unwrap().swap_remove(0)).is_err());
        let other = Authority::new("other", DAY).unwrap();
        assert!(Authority::open(other.pem().to_owned(), &authority.key()).is_err());
        assert!(!format!("{authority:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_request_has_to_be_signed_by_its_own_key() {
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        assert_eq!(requested_key(&request).unwrap().der_bytes(), key.der_bytes());
        // A byte of it changed: key or signature do not fit any more, or it is not a request.
        let middle = request.len() / 2;
        let other = if request.as_bytes()[middle] == b'A' { "B" } else { "A" };
        let mut changed = request.clone();
        changed.replace_range(middle..=middle, other);
        assert!(requested_key(&changed).is_err());
        for bad in ["", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"] {
            assert!(requested_key(bad).is_err());
        }
    }
}
