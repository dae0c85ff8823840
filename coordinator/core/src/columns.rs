//! Tables of text.

/// Rows in columns that are as wide as their widest cell, two blanks apart. Numbers stand at the right of a column
/// that `is_right` names by its index, and words at the left of the others.
pub fn aligned<R: AsRef<[String]>>(rows: &[R], is_right: impl Fn(usize) -> bool) -> String {
    let mut widths = Vec::new();
    for row in rows {
        for (column, cell) in row.as_ref().iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(column) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    let line =
        |row: &R| {
            let cells = row.as_ref().iter().zip(&widths).enumerate();
            let cells = cells.map(|(column, (cell, &width))| {
                if is_right(column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::aligned;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["NAME", "COUNT", "WHERE"], ["a", "7", ""], ["größer", "123456", "here"]];
        let rows = rows.map(|row| row.map(str::to_owned));
        assert_eq!(
            aligned(&rows, |column| column == 1),
            "NAME     COUNT  WHERE\na            7\ngrößer  123456  here\n"
        );
        assert_eq!(aligned::<Vec<String>>(&[], |_| false), "");
    }
}
