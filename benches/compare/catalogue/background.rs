//! Traffic that runs while something else is measured.

use crate::traffic::{Direction, Load, Rate};

/// Streams of each way in [`Background::Everyday`].
const EVERYDAY: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Background {
    /// As fast as they go.
    Bulk { direction: Direction, streams: usize },
    /// Ten streams of 100 Mbit/s up and ten down, which leave most subjects room.
    Everyday,
}

impl Background {
    /// Its part of a row's id.
    pub(super) fn id(self) -> String {
        match self {
            Self::Bulk { direction, streams } => format!("{}-{streams}", direction.name()),
            Self::Everyday => format!("100mbit-{EVERYDAY}"),
        }
    }

    pub(super) fn title(self) -> String {
        match self {
            Self::Bulk { direction, streams: 1 } => format!("1 {}load", direction.name()),
            Self::Bulk { direction, streams } => format!("{streams} {}loads", direction.name()),
            Self::Everyday => format!("{EVERYDAY} x 100 Mbit/s each way"),
        }
    }

    pub(crate) fn loads(self) -> Vec<Load> {
        match self {
            Self::Bulk { direction, streams } => vec![Load { direction, streams, rate: Rate::Unlimited }],
            Self::Everyday => [Direction::Up, Direction::Down]
                .map(|direction| Load { direction, streams: EVERYDAY, rate: Rate::Limited })
                .to_vec(),
        }
    }
}
