//! A query on its way through the name server.

use bytes::Bytes;

use super::DnsTransport;
use nsnet_stack::dns::Query;

/// A query: the message, its parsed form, and its transport. The message can be kept or sent on without a copy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) message: &'a Bytes,
    pub(super) query: Query<'a>,
    pub(super) transport: DnsTransport,
}

impl<'a> Request<'a> {
    /// `None` if the message is not a query.
    pub(super) fn parse(message: &'a Bytes, transport: DnsTransport) -> Option<Self> {
        Query::parse(message).map(|query| Self { message, query, transport })
    }
}
