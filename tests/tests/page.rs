//! The page in a real browser, while a run goes on and loses a worker.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coxswain_tests::browser::{self, Browser};
use coxswain_tests::process::signal;
use coxswain_tests::{Folder, skip, wait_until};

/// How long a run takes from its start to its first steps, on a machine that others load too.
const START: Duration = Duration::from_secs(60);

/// How soon a page shows what has changed.
const SHOWN: Duration = Duration::from_secs(2);

#[test]
fn a_browser_shows_a_run_as_it_goes_and_a_worker_that_is_killed() -> Result<()> {
    let Some(program) = browser::program() else {
        skip::lacking("Chromium (Debian's package chromium)");
        return Ok(());
    };
    let folder = Folder::new()?;
    let run = folder.run("page").layout(2, 1, 1).set("train.steps=100000");
    let mut up = run.start()?;
    let mut page = None;
    wait_until("the page's address", START, || {
        let said = run.said();
        page = said.lines().find_map(|line| Some(line.strip_prefix("page")?.trim().to_owned()));
        page.is_some()
    })?;
    let shown =
        watch(&mut Browser::start(program, &folder.path().join("browser"))?, &page.context("a page")?);
    // Twice: at once.
    signal(up.id(), "INT")?;
    signal(up.id(), "INT")?;
    up.wait().context("the run")?;
    shown
}

fn watch(browser: &mut Browser, page: &str) -> Result<()> {
    browser.open(page)?;
    browser.wait_for("document.querySelector('.pill')?.dataset.state === 'running'", START)?;
    browser.wait_for("document.querySelectorAll('.rank').length === 2", START)?;
    // The picture of the loss changes as steps are taken.
    let curve = "document.querySelector('#loss path')?.getAttribute('d') ?? ''";
    browser.wait_for(&format!("({curve}).length > 0"), START)?;
    let before = browser.value(curve)?;
    browser.wait_for(&format!("({curve}) !== {before}"), 3 * SHOWN)?;
    let step = "Number(document.querySelector('[role=progressbar]').nextSibling.textContent.match(/step ([\\d ]+) of/)[1].replaceAll(' ', ''))";
    ensure!(browser.value(step)?.as_f64() > Some(0.0), "no step is shown");
    let pid = browser.value("state.view.workers[1].pid")?.as_u64().context("a worker's process")?;
    signal(u32::try_from(pid)?, "KILL")?;
    let killed = browser
        .wait_for("document.querySelector('table.broken')?.innerText.includes('worker-1') ?? false", SHOWN)?;
    ensure!(killed <= SHOWN, "{killed:?}");
    // It goes on with a process that takes its place.
    browser.wait_for("document.querySelector('.pill')?.dataset.state === 'running'", START)?;
    // Other widths, and dark: nothing may break.
    browser.value("document.getElementById('theme').click(); document.getElementById('theme').click()")?;
    ensure!(browser.value("document.documentElement.className")? == "dark");
    ensure!(browser.complaints.is_empty(), "{:#?}", browser.complaints);
    Ok(())
}
