//! Makes references and smart pointers of a Dialer Dialers too.

use std::sync::Arc;

use async_trait::async_trait;

use super::{DatagramSocket, DialError, Dialer, Flow, Inbound, Source, Stream};

/// Passes every method on, also those with a default: the Dialer behind the pointer may override them.
macro_rules! dialer_behind {
    ($($pointer:ty),+) => {$(
        #[async_trait]
        impl<D: Dialer + ?Sized> Dialer for $pointer {
            fn inner(&self) -> &dyn Dialer {
                (**self).inner()
            }

            async fn authorize(&self, flow: &Flow) -> Result<(), DialError> {
                (**self).authorize(flow).await
            }

            async fn accept(&self, inbound: &Inbound) -> Result<(), DialError> {
                (**self).accept(inbound).await
            }

            async fn dial_tcp(&self, flow: &Flow) -> Result<Stream, DialError> {
                (**self).dial_tcp(flow).await
            }

            async fn bind_udp(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
                (**self).bind_udp(source).await
            }

            async fn bind_echo(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
                (**self).bind_echo(source).await
            }
        }
    )+};
}

dialer_behind!(&D, Box<D>, Arc<D>);

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::super::{DenyDialer, DirectDialer, FilterDialer, Protocol};
    use super::*;

    /// A Dialer whose methods all fail, with an error that names the method.
    struct Named;

    #[async_trait]
    impl Dialer for Named {
        fn inner(&self) -> &dyn Dialer {
            &DenyDialer
        }

        async fn authorize(&self, _: &Flow) -> Result<(), DialError> {
            Err(DialError::other("authorize"))
        }

        async fn accept(&self, _: &Inbound) -> Result<(), DialError> {
            Err(DialError::other("accept"))
        }

        async fn dial_tcp(&self, _: &Flow) -> Result<Stream, DialError> {
            Err(DialError::other("dial_tcp"))
        }

        async fn bind_udp(&self, _: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
            Err(DialError::other("bind_udp"))
        }

        async fn bind_echo(&self, _: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
            Err(DialError::other("bind_echo"))
        }
    }

    /// Overrides a single method.
    struct Offline<D>(D);

    #[async_trait]
    impl<D: Dialer> Dialer for Offline<D> {
        fn inner(&self) -> &dyn Dialer {
            &self.0
        }

        async fn dial_tcp(&self, _: &Flow) -> Result<Stream, DialError> {
            Err(DialError::NetworkUnreachable)
        }
    }

    fn flow(destination: &str) -> Flow {
        Flow::new(Protocol::Tcp, "127.0.0.1:4000".parse().unwrap(), destination.parse().unwrap())
    }

    fn outcome<T>(result: Result<T, DialError>) -> String {
        result.map_or_else(|error| error.to_string(), |_| "ok".to_owned())
    }

    /// The outcome of every method of a Dialer, in the order of the trait.
    async fn outcomes(dialer: impl Dialer) -> [String; 5] {
        let flow = flow("127.0.0.1:9");
        let source = Source::new(flow.source);
        let inbound = Inbound::new(Protocol::Tcp, flow.source, flow.destination, flow.source);
        [
            outcome(dialer.authorize(&flow).await),
            outcome(dialer.accept(&inbound).await),
            outcome(dialer.dial_tcp(&flow).await),
            outcome(dialer.bind_udp(&source).await),
            outcome(dialer.bind_echo(&source).await),
        ]
    }

    const NAMES: [&str; 5] = ["authorize", "accept", "dial_tcp", "bind_udp", "bind_echo"];
    const DENIED: [&str; 5] = ["administratively prohibited"; 5];

    #[tokio::test]
    async fn a_pointer_answers_as_what_it_points_to() {
        assert_eq!(outcomes(&Named).await, NAMES);
        assert_eq!(outcomes(Box::new(Named)).await, NAMES);
        assert_eq!(outcomes(Arc::new(Named)).await, NAMES);
        assert_eq!(outcomes(&Named as &dyn Dialer).await, NAMES);
        assert_eq!(outcomes(Box::new(Named) as Box<dyn Dialer>).await, NAMES);
        assert_eq!(outcomes(Arc::new(Named) as Arc<dyn Dialer>).await, NAMES);
        assert_eq!(outcomes(Arc::new(Box::new(&Named))).await, NAMES);
    }

    #[tokio::test]
    async fn a_wrapper_keeps_what_it_does_not_override() {
        let mut expected = NAMES;
        expected[2] = "network unreachable";
        assert_eq!(outcomes(Offline(Named)).await, expected);
        assert_eq!(outcomes(Offline(Arc::new(Named) as Arc<dyn Dialer>)).await, expected);
        assert_eq!(outcomes(Arc::new(Offline(Offline(&Named)))).await, expected);
    }

    #[tokio::test]
    async fn what_is_in_front_of_a_deny_dialer_is_denied() {
        assert_eq!(outcomes(DenyDialer).await, DENIED);
        assert_eq!(outcomes(Arc::new(DenyDialer) as Arc<dyn Dialer>).await, DENIED);
        let mut expected = DENIED;
        expected[2] = "network unreachable";
        assert_eq!(outcomes(Offline(Box::new(DenyDialer))).await, expected);
    }

    #[tokio::test]
    async fn a_filter_adds_its_own_decision_and_keeps_the_inner_ones() {
        let closed = |_: &Flow| Err(DialError::Refused);
        let mut expected = NAMES;
        assert_eq!(
            outcomes(FilterDialer::new(Arc::new(Named) as Arc<dyn Dialer>, |_| Ok(()))).await,
            expected
        );
        expected[0] = "connection refused";
        assert_eq!(outcomes(Box::new(FilterDialer::new(&Named, closed))).await, expected);
    }

    #[tokio::test]
    async fn direct_connections_are_made_behind_a_pointer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = flow(&listener.local_addr().unwrap().to_string());
        let direct = DirectDialer::new();
        let dialers: [Box<dyn Dialer + '_>; 3] =
            [Box::new(&direct), Box::new(Arc::new(direct.clone())), Box::new(Box::new(direct.clone()))];
        for dialer in dialers {
            dialer.authorize(&to).await.unwrap();
            dialer.dial_tcp(&to).await.unwrap();
            dialer.bind_udp(&Source::new(to.source)).await.unwrap();
            let inbound = Inbound::new(Protocol::Tcp, to.source, to.target, to.source);
            dialer.accept(&inbound).await.unwrap();
        }
    }
}
