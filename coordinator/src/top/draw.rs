//! The cluster on a terminal.

use coxswain_core::cluster::{RankState, duration};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Cell, Gauge, Paragraph, Row, Sparkline, Table, TableState, Wrap};

use super::{TopPane, TopState};
use crate::view::{ClusterView, JobDetail, JobView, RankCell};

/// The most lines of the list of jobs.
const MAX_JOBS: u16 = 6;

/// Characters of a bar.
const BAR: usize = 8;

pub(super) fn draw(frame: &mut Frame<'_>, state: &TopState) {
    let Some(view) = &state.view else {
        return frame.render_widget(Paragraph::new("asking the coordinator"), frame.area());
    };
    let shown = view.detail.as_ref().and_then(|detail| view.jobs.iter().find(|job| job.job == detail.job));
    let jobs = u16::try_from(view.jobs.len()).unwrap_or(MAX_JOBS).clamp(1, MAX_JOBS) + 3;
    let [jobs, job, pane, foot] = Layout::vertical([
        Constraint::Length(jobs),
        Constraint::Length(if shown.is_some() { 8 } else { 0 }),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_jobs(frame, jobs, view, shown);
    if let (Some(shown), Some(detail)) = (shown, &view.detail) {
        draw_job(frame, job, state, shown, detail);
    }
    match state.pane {
        TopPane::Ranks => draw_ranks(frame, pane, state, view),
        TopPane::Workers => draw_workers(frame, pane, state, view),
        TopPane::Events => draw_events(frame, pane, state, view),
    }
    draw_foot(frame, foot, state);
}

fn boxed(title: impl Into<Line<'static>>) -> Block<'static> {
    Block::bordered().border_type(BorderType::Rounded).border_style(Style::new().dark_gray()).title(title)
}

fn state_color(state: &str) -> Color {
    match state {
        "running" => Color::Green,
        "failed" => Color::Red,
        "done" => Color::Blue,
        "cancelled" | "gathering" => Color::Yellow,
        _ => Color::Gray,
    }
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn draw_jobs(frame: &mut Frame<'_>, area: Rect, view: &ClusterView, shown: Option<&JobView>) {
    let rows = view.jobs.iter().map(|job| {
        let marked = shown.is_some_and(|shown| shown.job == job.job);
        let name = format!("{}{}", if marked { "▸ " } else { "  " }, job.job);
        let row = Row::new([
            Cell::from(name),
            Cell::from(job.state.clone()).style(Style::new().fg(state_color(&job.state))),
            Cell::from(format!("{}/{}", job.step, job.steps)),
            Cell::from(or_dash(job.loss.map(|loss| format!("{loss:.4}")))),
            Cell::from(or_dash(job.tokens_per_second.map(|speed| format!("{speed:.0} {}s/s", job.unit)))),
            Cell::from(or_dash(job.left_s.map(duration))),
            Cell::from(job.reason.replace('\n', " ")),
        ]);
        if marked { row.style(Style::new().add_modifier(Modifier::BOLD)) } else { row }
    });
    let widths = [
        Constraint::Length(18),
        Constraint::Length(10),
        Constraint::Length(13),
        Constraint::Length(9),
        Constraint::Length(16),
        Constraint::Length(13),
        Constraint::Fill(1),
    ];
    let head =
        Row::new(["  JOB", "STATE", "STEP", "LOSS", "SPEED", "LEFT", "WHY"]).style(Style::new().dark_gray());
    let idle = view.workers.iter().filter(|worker| worker.phase == "idle").count();
    let title = format!(
        " coxswain {} · {} workers, {idle} idle · up {} ",
        view.coordinator.version,
        view.workers.len(),
        duration(view.coordinator.uptime_s as f64)
    );
    frame.render_widget(Table::new(rows, widths).header(head).block(boxed(title)), area);
}

fn draw_job(frame: &mut Frame<'_>, area: Rect, state: &TopState, job: &JobView, detail: &JobDetail) {
    let block = boxed(format!(" {} · generation {} ", job.job, job.generation));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [progress, words, graphs] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Min(1)]).areas(inner);
    let share = if job.steps == 0 { 0.0 } else { (job.step as f64 / job.steps as f64).clamp(0.0, 1.0) };
    let gauge = Gauge::default().gauge_style(Style::new().fg(Color::Blue).bg(Color::DarkGray)).ratio(share);
    frame.render_widget(gauge.label(format!("step {} of {}", job.step, job.steps)), progress);
    let lost = &detail.lost;
    let interrupted = match lost.interruptions {
        0 => "no interruption".to_owned(),
        n => format!("{n} interrupted, {} and {} steps lost", duration(lost.seconds), lost.steps),
    };
    let waiting = detail.grid.as_ref().and_then(|grid| grid.waiting.clone()).unwrap_or_default();
    let line = Line::from(vec![
        Span::from(format!("validation {}", or_dash(job.validation_loss.map(|loss| format!("{loss:.4}"))))),
        Span::from(format!(" · checkpoint {}", or_dash(job.checkpoint.map(|step| step.to_string())))),
        Span::from(format!(" · {interrupted}")),
        Span::from(if waiting.is_empty() { waiting } else { format!(" · {waiting}") }).yellow(),
    ]);
    frame.render_widget(Paragraph::new(line), words);
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(graphs);
    let loss = job.loss.map_or(String::new(), |loss| format!(" loss {loss:.4}"));
    let speed = job.tokens_per_second.map_or(String::new(), |speed| format!(" {speed:.0} {}s/s", job.unit));
    spark(frame, left, &loss, state.losses.iter().copied(), Color::Blue);
    spark(frame, right, &speed, state.speeds.iter().copied(), Color::Green);
}

/// The newest numbers as a sparkline, from the least to the most of them.
fn spark(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    numbers: impl DoubleEndedIterator<Item = f64>,
    color: Color,
) {
    let mut newest: Vec<f64> = numbers.rev().take(area.width.into()).collect();
    newest.reverse();
    let low = newest.iter().copied().fold(f64::INFINITY, f64::min);
    let high = newest.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let span = (high - low).max(high.abs() * 1e-6).max(f64::MIN_POSITIVE);
    // From 8 to 64, so that the least can be seen.
    let heights: Vec<u64> = newest.iter().map(|number| 8 + (56.0 * (number - low) / span) as u64).collect();
    let block = Block::new().title(Line::from(title.to_owned()).fg(color));
    frame.render_widget(
        Sparkline::default().block(block).data(heights).max(64).style(Style::new().fg(color)),
        area,
    );
}

fn rank_color(state: RankState) -> Color {
    match state {
        RankState::Working => Color::Green,
        RankState::Waiting => Color::Yellow,
        RankState::Done => Color::Blue,
        RankState::Lost | RankState::Failed | RankState::Silent => Color::Red,
        RankState::Starting | RankState::Preparing | RankState::Free => Color::Gray,
    }
}

fn rank_word(state: RankState) -> &'static str {
    match state {
        RankState::Starting => "starting",
        RankState::Preparing => "preparing",
        RankState::Working => "computing",
        RankState::Waiting => "waiting",
        RankState::Silent => "silent",
        RankState::Done => "done",
        RankState::Failed => "failed",
        RankState::Lost => "lost",
        RankState::Free => "idle",
    }
}

fn bar(share: f64) -> String {
    let full = (share.clamp(0.0, 1.0) * BAR as f64).round() as usize;
    format!("{}{}", "█".repeat(full), "░".repeat(BAR - full))
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / f64::from(1 << 20))
}

fn draw_ranks(frame: &mut Frame<'_>, area: Rect, state: &TopState, view: &ClusterView) {
    let grid = view.detail.as_ref().and_then(|detail| detail.grid.as_ref());
    let Some(grid) = grid else {
        let text = Paragraph::new("no generation has formed yet").block(boxed(" ranks "));
        return frame.render_widget(text, area);
    };
    let rows =
        grid.ranks.iter().map(|rank| rank_row(rank).style(Style::new().fg(rank_color(rank.shown.state))));
    let widths = [
        Constraint::Length(4),
        Constraint::Length(13),
        Constraint::Length(16),
        Constraint::Length(10),
        Constraint::Length(13),
        Constraint::Length(14),
        Constraint::Fill(1),
    ];
    let head = Row::new(["RANK", "STAGE SH REP", "WORKER", "STATE", "BUSY", "MiB OF PLAN", "DOES"]);
    let title = format!(
        " ranks · {} stages × {} shards × {} replicas · generation {}{} ",
        grid.pipeline,
        grid.tensor,
        grid.data,
        grid.generation,
        if grid.at_work { "" } else { ", ended" }
    );
    draw_table(
        frame,
        area,
        state,
        Table::new(rows, widths).header(head.style(Style::new().dark_gray())),
        title,
    );
}

fn rank_row(rank: &RankCell) -> Row<'static> {
    let shown = &rank.shown;
    let place = format!("{:>5} {:>2} {:>3}", shown.place.pipeline, shown.place.tensor, shown.place.data);
    let busy = rank.busy.map(|share| format!("{} {:>3.0}%", bar(share), 100.0 * share));
    let memory = match (shown.peak_tensor_bytes, &rank.planned) {
        (Some(peak), Some(planned)) => format!("{} of {}", mebibytes(peak), mebibytes(planned.tensor_bytes)),
        (Some(peak), None) => mebibytes(peak),
        (None, _) => "-".to_owned(),
    };
    let time = duration(shown.for_ms as f64 / 1000.0);
    let does = match (shown.waits_for, shown.slow) {
        (Some(peer), _) => format!("→ waits for rank {peer} ({time})"),
        (None, Some(slow)) => format!("{} · {slow:.1} times as long as its peers", shown.doing),
        (None, None) => shown.doing.clone(),
    };
    Row::new([
        shown.rank.to_string(),
        place,
        shown.worker.clone(),
        rank_word(shown.state).to_owned(),
        or_dash(busy),
        memory,
        does,
    ])
}

fn draw_workers(frame: &mut Frame<'_>, area: Rect, state: &TopState, view: &ClusterView) {
    let rows = view.workers.iter().map(|worker| {
        Row::new([
            worker.worker.clone(),
            if worker.leaving.is_some() { "draining".to_owned() } else { worker.phase.clone() },
            or_dash(worker.job.clone()),
            worker.step.to_string(),
            format!("{} MiB", mebibytes(worker.peak_tensor_bytes)),
            format!("{}, pid {} on {}", worker.device, worker.pid, worker.host),
        ])
    });
    let widths = [
        Constraint::Length(20),
        Constraint::Length(10),
        Constraint::Length(18),
        Constraint::Length(9),
        Constraint::Length(11),
        Constraint::Fill(1),
    ];
    let head =
        Row::new(["WORKER", "PHASE", "JOB", "STEP", "TENSORS", "WHERE"]).style(Style::new().dark_gray());
    draw_table(frame, area, state, Table::new(rows, widths).header(head), " workers ".to_owned());
}

fn draw_events(frame: &mut Frame<'_>, area: Rect, state: &TopState, view: &ClusterView) {
    let events = view.detail.iter().flat_map(|detail| &detail.events);
    let rows = events.map(|event| {
        let ago = duration(view.at_ms.saturating_sub(event.at_ms) as f64 / 1000.0);
        Row::new([format!("{ago} ago"), event.kind.clone(), event.text.replace('\n', " ")])
    });
    let widths = [Constraint::Length(17), Constraint::Length(12), Constraint::Fill(1)];
    draw_table(frame, area, state, Table::new(rows, widths), " what happened, the newest first ".to_owned());
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, state: &TopState, table: Table<'_>, title: String) {
    let chosen = Style::new().add_modifier(Modifier::REVERSED);
    let mut at = TableState::default().with_selected(Some(state.line));
    frame.render_stateful_widget(table.block(boxed(title)).row_highlight_style(chosen), area, &mut at);
}

fn draw_foot(frame: &mut Frame<'_>, area: Rect, state: &TopState) {
    let text = match (&state.question, state.message.as_str()) {
        (Some((question, _)), _) => Line::from(format!("{question}: y or n")).yellow().bold(),
        (None, "") => {
            Line::from("↑↓ choose  Tab ranks, workers, events  n next job  x drain  c cancel  q quit")
                .dark_gray()
        }
        (None, message) => Line::from(message.to_owned()),
    };
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
}
