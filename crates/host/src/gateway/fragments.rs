//! Reassembles fragments from the container before they are handled.

use std::rc::Rc;

use nsnet_proto::vnet;

use super::Gateway;
use nsnet_stack::between::Form;
use nsnet_stack::discard::Discard;
use nsnet_stack::fragments::Fragment;
use nsnet_stack::ip::extensions;
use nsnet_stack::packet::Packet;

impl Gateway {
    /// Handles a fragment. A packet that it completes is handled as if it had arrived whole.
    pub(super) fn reassemble(self: &Rc<Self>, bytes: &[u8]) -> Result<(), Discard> {
        let fragment = Fragment::parse(bytes)?;
        if self.context().addressing.subnet_of_container(fragment.source()).is_none() {
            return Err(Discard::ForeignSource);
        }
        let whole = self.fragments.borrow_mut().add(self.context().clock.now(), &fragment);
        self.after_fragments();
        let Some(whole) = whole else { return Ok(()) };
        let result = self.handle_whole(whole.packet());
        self.fragments.borrow_mut().recycle(whole);
        result
    }

    fn handle_whole(self: &Rc<Self>, bytes: &[u8]) -> Result<(), Discard> {
        // The default header, because no device has to complete anything of a fragment.
        let header = vnet::Header::default();
        if let Some(result) = self.forward(&header, bytes, Form::Reassembled) {
            return result;
        }
        let stripped;
        let packet = match Packet::parse(&header, bytes) {
            Err(Discard::Extended) => {
                stripped = extensions::strip(bytes)?;
                Packet::parse(&header, &stripped)?
            }
            packet => packet?,
        };
        // A packet that was fragmented once may be fragmented again.
        self.handle_packet(&Packet { dont_fragment: false, ..packet })
    }

    /// Counts the fragments that were dropped, and makes sure that incomplete packets expire.
    fn after_fragments(self: &Rc<Self>) {
        let mut fragments = self.fragments.borrow_mut();
        self.context().counters.dropped_fragments(fragments.take_dropped());
        if let Some(deadline) = fragments.deadline()
            && !self.expires_fragments.replace(true)
        {
            let gateway = Rc::clone(self);
            self.context().tasks.spawn(async move {
                tokio::time::sleep_until(deadline.into()).await;
                gateway.expires_fragments.set(false);
                gateway.fragments.borrow_mut().expire(gateway.context().clock.now());
                gateway.after_fragments();
            });
        }
    }
}
