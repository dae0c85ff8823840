//! The canonical order in which gradients are added, whatever the layout.
//!
//! The `M` micro-batches of a step form `G` gradient groups of consecutive ones. Within a group gradients
//! accumulate in micro-batch order; groups are combined in a fixed binary tree. A data rank owns
//! whole groups, reduces the tree nodes that lie wholly inside them, and exchanges only those. The
//! sum therefore has the same bits for every number of data ranks.
//!
//! This module knows the shape of the tree. Who owns which groups is decided by the plan.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Elements of a block of a parameter's slice whose squared norm is one sum; blocks are added in a
/// fixed tree. Borders between data ranks fall between blocks.
pub const NORM_BLOCK: u64 = 65_536;

/// A node of the tree: the sum over the gradient groups `first..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TreeNode {
    /// The first group of the node.
    pub first: u32,
    /// One past the last group of the node.
    pub end: u32,
}

impl TreeNode {
    /// The root of a tree over `groups` gradient groups.
    pub fn root(groups: u32) -> TreeNode {
        TreeNode { first: 0, end: groups }
    }

    /// The leaf of one gradient group.
    pub fn leaf(group: u32) -> TreeNode {
        TreeNode { first: group, end: group + 1 }
    }

    /// The two nodes whose sum this node is, left first; `None` for a leaf.
    ///
    /// The left child is the largest power of two that is smaller than the node, so a tree over a
    /// prefix of the groups is a part of the tree over all of them.
    pub fn children(self) -> Option<(TreeNode, TreeNode)> {
        let len = self.end - self.first;
        if len < 2 {
            return None;
        }
        let half = len.next_power_of_two() / 2;
        let middle = self.first + half;
        Some((TreeNode { first: self.first, end: middle }, TreeNode { first: middle, end: self.end }))
    }

    /// The node whose child `child` is, in the tree below `self`.
    pub fn parent_of(self, child: TreeNode) -> Option<TreeNode> {
        let (left, right) = self.children()?;
        if child == left || child == right {
            Some(self)
        } else if child.end <= left.end {
            left.parent_of(child)
        } else {
            right.parent_of(child)
        }
    }

    fn lies_in(self, owned: &Range<u32>) -> bool {
        owned.start <= self.first && self.end <= owned.end
    }
}

/// Shares: `parts` consecutive, nearly equal parts of `0..count`.
///
/// The same rule splits micro-batches into gradient groups, groups over data ranks, layers into stages of equal
/// cost, and a vocabulary over tensor ranks.
pub fn split(count: u32, parts: u32) -> Vec<Range<u32>> {
    let bound = |i: u32| (u64::from(count) * u64::from(i) / u64::from(parts)) as u32;
    (0..parts).map(|i| bound(i)..bound(i + 1)).collect()
}

/// The largest nodes of the tree over `runs` runs that lie wholly inside `owned`, left to right.
pub fn cover(runs: u32, owned: &Range<u32>) -> Vec<TreeNode> {
    fn visit(node: TreeNode, owned: &Range<u32>, found: &mut Vec<TreeNode>) {
        if node.lies_in(owned) {
            found.push(node);
        } else if let Some((left, right)) = node.children() {
            visit(left, owned, found);
            visit(right, owned, found);
        }
    }
    let mut found = Vec::new();
    visit(TreeNode::root(runs), owned, &mut found);
    found
}

/// Reduces `node` by `add(left, right)`, given the values of some nodes that cover it.
///
/// `take` returns the value of a node if it is at hand. `Err` names a leaf that no value covers.
pub fn reduce<T>(
    node: TreeNode,
    take: &mut impl FnMut(TreeNode) -> Option<T>,
    add: &mut impl FnMut(T, T) -> T,
) -> Result<T, TreeNode> {
    if let Some(value) = take(node) {
        return Ok(value);
    }
    let (left, right) = node.children().ok_or(node)?;
    let left = reduce(left, take, add)?;
    let right = reduce(right, take, add)?;
    Ok(add(left, right))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Floating-point sums print their own association.
    fn text(node: TreeNode, owned: &[Vec<TreeNode>]) -> String {
        reduce(
            node,
            &mut |n| {
                owned.iter().flatten().any(|o| *o == n).then(|| {
                    reduce(n, &mut |m| (m.end - m.first == 1).then(|| m.first.to_string()), &mut join)
                        .unwrap()
                })
            },
            &mut join,
        )
        .unwrap()
    }

    fn join(a: String, b: String) -> String {
        format!("({a}+{b})")
    }

    #[test]
    fn the_sum_is_the_same_text_for_every_number_of_data_ranks() {
        for runs in 1..=12 {
            let whole = text(TreeNode::root(runs), &[cover(runs, &(0..runs))]);
            for ranks in 1..=runs {
                let owned: Vec<_> = split(runs, ranks).iter().map(|o| cover(runs, o)).collect();
                assert_eq!(text(TreeNode::root(runs), &owned), whole, "{runs} runs over {ranks} ranks");
            }
        }
    }

    #[test]
    fn splits_are_consecutive_and_nearly_equal() {
        assert_eq!(split(8, 3), vec![0..2, 2..5, 5..8]);
        assert_eq!(split(515, 2), vec![0..257, 257..515]);
        assert_eq!(cover(8, &(2..5)), vec![TreeNode { first: 2, end: 4 }, TreeNode::leaf(4)]);
    }

    #[test]
    fn neighbours_are_siblings_only_where_the_tree_says_so() {
        let root = TreeNode::root(8);
        assert_eq!(root.parent_of(TreeNode::leaf(2)), Some(TreeNode { first: 2, end: 4 }));
        assert_eq!(root.parent_of(TreeNode { first: 4, end: 6 }), Some(TreeNode { first: 4, end: 8 }));
        assert_eq!(root.parent_of(TreeNode { first: 1, end: 3 }), None);
        assert_eq!(root.parent_of(root), None);
    }

    #[test]
    fn a_missing_run_is_named() {
        let sum = reduce(
            TreeNode::root(4),
            &mut |n| (n == TreeNode { first: 0, end: 2 }).then_some(1),
            &mut |a, b| a + b,
        );
        assert_eq!(sum, Err(TreeNode::leaf(2)));
    }
}
