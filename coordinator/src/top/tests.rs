use expect_test::expect_file;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::view::tests::{sample_detail, sample_view};

fn state() -> TopState {
    let mut state = TopState::default();
    state.take(ClusterView { detail: Some(sample_detail()), ..sample_view() });
    state.losses = (0..40).map(|n| 4.0 - f64::from(n) / 20.0).collect();
    state.speeds = (0..40).map(|n| 600.0 + 40.0 * f64::from(n % 7)).collect();
    state
}

/// What stands on a terminal of this size, without colours.
fn screen(state: &TopState, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw::draw(frame, state)).unwrap();
    let text = terminal.backend().to_string();
    text.lines().map(|line| format!("{}\n", line.trim_matches('"').trim_end())).collect()
}

#[test]
fn the_cluster_fits_terminals_of_several_sizes() {
    let mut state = state();
    let mut text = screen(&state, 120, 26);
    state.key(KeyCode::Tab);
    text += &screen(&state, 80, 24);
    state.key(KeyCode::Tab);
    state.key(KeyCode::Char('c'));
    text += &screen(&state, 100, 24);
    expect_file!["tests/screens.txt"].assert_eq(&text);
    for (width, height) in [(1, 1), (10, 3), (40, 10), (300, 100)] {
        screen(&state, width, height);
    }
}

#[test]
fn keys_move_and_ask_before_they_act() {
    let mut state = state();
    for (key, line) in
        [(KeyCode::Up, 0), (KeyCode::Down, 1), (KeyCode::Char('j'), 1), (KeyCode::Char('k'), 0)]
    {
        assert_eq!(state.key(key), None);
        assert_eq!(state.line, line, "{key:?}");
    }
    state.key(KeyCode::Down);
    assert_eq!((state.key(KeyCode::Char('x')), state.question.is_some()), (None, true));
    assert_eq!((state.key(KeyCode::Char('n')), state.question.is_some()), (None, false));
    state.key(KeyCode::Char('x'));
    assert_eq!(state.key(KeyCode::Char('y')), Some(TopRequest::Drain("w1".to_owned())));
    state.key(KeyCode::Char('c'));
    assert_eq!(state.key(KeyCode::Char('y')), Some(TopRequest::Cancel("demo-2".to_owned())));
    // The jobs are other-3, demo-2 and demo-1.
    assert_eq!((state.key(KeyCode::Char('n')), state.job.as_str()), (Some(TopRequest::Show), "demo-1"));
    assert_eq!(state.key(KeyCode::Char('q')), Some(TopRequest::Quit));
}
