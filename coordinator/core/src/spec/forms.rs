//! The keys of a job file that choose a form: each module has the keys with their meaning, reads them, and writes those
//! of a form. What is known of the forms themselves is in [`coxswain_types::forms`].

pub(super) mod attention;
pub(super) mod positions;
