//! Cycles and orders of a directed graph.

/// A graph whose nodes are numbers below a bound.
pub(crate) struct Graph {
    /// For each node, those it leads to directly.
    edges: Vec<Vec<usize>>,
}

impl Graph {
    pub(crate) fn new(nodes: usize, edges: impl Iterator<Item = (usize, usize)>) -> Self {
        let mut graph = Self { edges: vec![Vec::new(); nodes] };
        edges.for_each(|(from, to)| graph.edges[from].push(to));
        graph
    }

    /// The sets of nodes that all lead to each other, and so to themselves.
    pub(crate) fn cycles(&self) -> Vec<Vec<usize>> {
        let reached: Vec<Vec<bool>> = (0..self.edges.len()).map(|node| self.reached_from(node)).collect();
        let mut cycles: Vec<Vec<usize>> = Vec::new();
        for (node, from_node) in reached.iter().enumerate() {
            let is_known = cycles.iter().any(|cycle| cycle.contains(&node));
            if from_node[node] && !is_known {
                cycles.push(
                    (0..reached.len()).filter(|other| from_node[*other] && reached[*other][node]).collect(),
                );
            }
        }
        cycles
    }

    fn reached_from(&self, node: usize) -> Vec<bool> {
        let mut reached = vec![false; self.edges.len()];
        let mut to_visit = self.edges[node].clone();
        while let Some(node) = to_visit.pop() {
            if !std::mem::replace(&mut reached[node], true) {
                to_visit.extend(&self.edges[node]);
            }
        }
        reached
    }

    /// All nodes of a graph without cycles, each after those it leads to, otherwise by number.
    pub(crate) fn order(&self) -> Vec<usize> {
        let mut order = Vec::new();
        for node in 0..self.edges.len() {
            self.append(node, &mut order);
        }
        order
    }

    fn append(&self, node: usize, order: &mut Vec<usize>) {
        if order.contains(&node) {
            return;
        }
        let mut below = self.edges[node].clone();
        below.sort_unstable();
        below.into_iter().for_each(|node| self.append(node, order));
        order.push(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(nodes: usize, edges: &[(usize, usize)]) -> Graph {
        Graph::new(nodes, edges.iter().copied())
    }

    #[test]
    fn cycles_are_told_apart() {
        let graph = graph(6, &[(0, 3), (3, 0), (1, 2), (2, 4), (4, 1), (0, 1), (5, 0)]);
        assert_eq!(graph.cycles(), [vec![0, 3], vec![1, 2, 4]]);
    }

    #[test]
    fn a_diamond_is_no_cycle() {
        let graph = graph(4, &[(3, 1), (3, 2), (1, 0), (2, 0)]);
        assert_eq!(graph.cycles(), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn a_node_comes_after_those_it_leads_to() {
        assert_eq!(graph(4, &[(0, 2), (1, 0)]).order(), [2, 0, 1, 3]);
    }
}
