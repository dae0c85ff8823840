//! The register with times that are given.

use super::*;
use crate::auth::chains::WORKER_LIFE;

/// How long chains live here: a day.
const LIFE_S: u64 = 24 * 3600;

fn digest(n: u64) -> Digest {
    Digest::of(&n.to_be_bytes())
}

/// A worker w0 with some processes that have its certificates, and what the coordinator knows of them.
#[derive(Default)]
struct Case {
    register: Register,
    now_s: u64,
    made: u64,
}

impl Case {
    fn make(&mut self) -> Shown {
        self.made += 1;
        let identity = Principal::from_uri("coxswain://worker/w0/job/demo-*").unwrap();
        let ends_s = self.now_s + WORKER_LIFE.as_secs();
        Shown { identity, digest: digest(self.made), made_s: self.now_s, ends_s }
    }

    fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(|change| self.register.apply(change, self.now_s));
        // A restart of the coordinator changes nothing.
        let mut again = Register::default();
        self.register.snapshot(0).into_iter().for_each(|change| again.apply(change, self.now_s));
        assert_eq!(again, self.register);
    }

    fn join(&mut self) -> Shown {
        let shown = self.make();
        self.register.may_join(&shown.identity, self.now_s).unwrap();
        let joined = self.register.joined(&shown.identity, made(&shown), self.now_s);
        self.apply(joined);
        shown
    }

    fn show(&mut self, shown: &Shown) {
        let seen = self.register.seen(shown);
        self.apply(seen);
    }

    /// Renews `by` over a connection that showed it.
    fn renew(&mut self, by: &Shown) -> Result<Shown, RenewError> {
        match self.register.may_renew(by, by.digest, self.now_s, LIFE_S) {
            Ok(chain) => {
                let newer = self.make();
                let chain = chain.renewed(by.digest, made(&newer));
                self.apply([Change::Chain { name: "w0".to_owned(), chain }]);
                Ok(newer)
            }
            Err(AccessRefusal::Renew(why)) => {
                let split = self.register.refused(by, &AccessRefusal::Renew(why.clone()));
                self.apply(split);
                Err(why)
            }
            Err(other) => panic!("{other}"),
        }
    }
}

fn made(shown: &Shown) -> IssuedCertificate {
    IssuedCertificate { digest: shown.digest, ends_s: shown.ends_s }
}

fn split() -> RenewError {
    RenewError::Split("w0".to_owned())
}

#[test]
fn each_certificate_is_renewed_once_and_once_more_where_an_answer_was_lost() {
    let mut case = Case::default();
    let first = case.join();
    let _lost = case.renew(&first).unwrap();
    let _lost = case.renew(&first).unwrap();
    let second = case.renew(&first).unwrap();
    let third = case.renew(&second).unwrap();
    case.show(&second);
    let fourth = case.renew(&second).unwrap();
    case.show(&fourth);
    assert_eq!(case.renew(&second), Err(split()), "the newest was shown, so its answer was not lost");
    assert_eq!(case.renew(&third), Err(split()));
}

#[test]
fn a_stolen_certificate_ends_its_chain() {
    // Who renews the certificate first, and whether the worker or the thief then shows what they got.
    for shows in [false, true] {
        let mut case = Case::default();
        let stolen = case.join();
        let thiefs = case.renew(&stolen).unwrap();
        if shows {
            case.show(&thiefs);
            assert_eq!(case.renew(&stolen), Err(split()));
        } else {
            // Taken for a lost answer; of the two that were given out, one is not in the chain any more.
            let workers = case.renew(&stolen).unwrap();
            case.renew(&workers).unwrap();
            assert_eq!(case.renew(&thiefs), Err(split()));
        }
        assert_eq!(case.renew(&thiefs), Err(split()), "of neither is it known whose it is");
        case.now_s += 1;
        let again = case.join();
        case.renew(&again).unwrap();
        let late = case.renew(&thiefs);
        assert_eq!(late, Err(RenewError::JoinedAgain("w0".to_owned())));
        case.renew(&again).unwrap();
    }
}

#[test]
fn renewals_end_with_their_time_and_their_number() {
    let mut case = Case::default();
    let mut newest = case.join();
    for _ in 0..LIFE_S / 1800 {
        newest = case.renew(&newest).unwrap();
        case.now_s += 1800;
    }
    assert_eq!(case.renew(&newest), Err(RenewError::TooOld { name: "w0".to_owned(), days: 1 }));
    newest = case.join();
    let most = (0..1000).take_while(|_| case.renew(&newest).map(|newer| newest = newer).is_ok()).count();
    assert_eq!(most, 98, "a day has 48 halves of an hour");
    let mut empty = Case::default();
    assert_eq!(empty.renew(&newest), Err(RenewError::Unknown("w0".to_owned())));
}

#[test]
fn a_name_stays_with_its_jobs_while_its_certificate_lives() {
    let mut case = Case::default();
    let first = case.join();
    let other = Principal::from_uri("coxswain://worker/w0/job/b-*").unwrap();
    let taken = case.register.may_join(&other, first.ends_s - 1).unwrap_err().to_string();
    assert!(taken.contains("held by a worker for other jobs (demo-*)"), "{taken}");
    case.register.may_join(&first.identity, first.ends_s - 1).unwrap();
    case.register.may_join(&other, first.ends_s).unwrap();
    // A start with a fast clock keeps it for a day.
    let day_s = 24 * 3600;
    assert_eq!(case.register.snapshot(first.ends_s + day_s - 1).len(), 1);
    assert_eq!(case.register.snapshot(first.ends_s + day_s), []);
}

#[test]
fn a_revocation_refuses_what_was_made_before_it_for_ever() {
    let mut case = Case { now_s: 100, ..Case::default() };
    let by = Principal::from_uri("coxswain://admin/ann/job/*").unwrap();
    let before = case.join();
    let revoke = |case: &Case, roles: &[Role], name| case.register.revoke(roles, name, &by, case.now_s);
    let changes = revoke(&case, &Role::ALL, "w0").unwrap();
    case.apply(changes);
    assert!(case.register.refuses(&before));
    let revoked = AccessRefusal::Revoked(Role::Worker, "w0".to_owned());
    assert_eq!(case.register.may_join(&before.identity, 100), Err(revoked.clone()));
    assert_eq!(case.register.may_renew(&before, before.digest, 100, LIFE_S), Err(revoked));
    let lift = |case: &Case, roles: &[Role]| case.register.lift(roles, "w0", &by);
    let lifted = lift(&case, &Role::ALL).unwrap();
    case.apply(lifted);
    assert_eq!(lift(&case, &Role::ALL), Err(RevokeError::NotRevoked("w0".to_owned()).into()));
    // No certificate is given that is refused: not in the second of the revocation, nor where the clock was
    // set back.
    for (now_s, wait_s) in [(100, 1), (40, 61)] {
        let early = AccessRefusal::TooEarly { role: Role::Worker, name: "w0".to_owned(), wait_s };
        assert_eq!(case.register.may_join(&before.identity, now_s), Err(early));
    }
    case.now_s = 101;
    let after = case.join();
    assert!(case.register.refuses(&before) && !case.register.refuses(&after));
    assert_eq!(case.register.revoked().count(), 0);
    // Not oneself, unless as somebody else; nothing that cannot be a name.
    let own = RevokeError::Own("admin ann".to_owned());
    assert_eq!(revoke(&case, &Role::ALL, "ann"), Err(own.into()));
    assert!(revoke(&case, &[Role::Worker], "ann").is_ok());
    assert!(matches!(revoke(&case, &Role::ALL, "a b"), Err(AccessRefusal::Name(_))));
}

#[test]
fn a_renewal_by_an_earlier_process_leaves_the_newer_chain_alone() {
    // When the newer process joins after the newest certificate of the earlier one: in the same second, and
    // after the clock was set back.
    for rejoins_s in [5000, 1000] {
        let mut case = Case { now_s: 5000, ..Case::default() };
        let first = case.join();
        let second = case.renew(&first).unwrap();
        case.now_s = rejoins_s;
        let newer = case.join();
        for old in [&first, &second] {
            assert_eq!(case.renew(old), Err(RenewError::JoinedAgain("w0".to_owned())), "{rejoins_s}");
        }
        case.renew(&newer).unwrap();
    }
}

#[test]
fn a_pod_has_so_many_names_and_none_once_its_own_is_revoked() {
    let mut case = Case::default();
    let identity = |name: &str| Principal::from_uri(&format!("coxswain://worker/{name}/job/*")).unwrap();
    let join = |case: &mut Case, name: &str| {
        let identity = identity(name);
        case.register.may_join_of_pod(&identity, "pod-1", case.now_s)?;
        let made = made(&case.make());
        let joined = case.register.joined(&identity, made, case.now_s);
        case.apply(joined);
        Ok::<_, AccessRefusal>(())
    };
    // Of another pod.
    let first = made(&case.make());
    let other = case.register.joined(&identity("pod-10"), first, 0);
    case.apply(other);
    for n in 0..64 {
        join(&mut case, &format!("pod-1-{n}")).unwrap();
    }
    let most = AccessRefusal::Renew(RenewError::TooManyOfPod { pod: "pod-1".to_owned() });
    assert_eq!(join(&mut case, "pod-1"), Err(most));
    join(&mut case, "pod-1-63").unwrap();
    case.now_s += WORKER_LIFE.as_secs();
    join(&mut case, "pod-1").unwrap();
    let by = Principal::from_uri("coxswain://admin/ann/job/*").unwrap();
    let revoked = case.register.revoke(&[Role::Worker], "pod-1", &by, case.now_s).unwrap();
    case.apply(revoked);
    let revoked = AccessRefusal::Revoked(Role::Worker, "pod-1".to_owned());
    assert_eq!(join(&mut case, "pod-1-0"), Err(revoked));
}
