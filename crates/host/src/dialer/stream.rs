//! The upstream end of a TCP flow.

use std::fmt;
use std::future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A byte stream that can be reset. Implement it for a stream that wraps another, so that a reset of the container
/// passes through.
///
/// A stream that knows no reset needs no implementation: [`Stream::new`] takes anything that reads and writes.
///
/// | stream | what [`abort`](Self::abort) does |
/// |---|---|
/// | tokio's [`TcpStream`] | the other end sees a reset (`SO_LINGER` 0, socket(7)) |
/// | [`Stream`] | what the stream inside does |
/// | tokio's [`UnixStream`] and [`DuplexStream`] | the other end sees the stream end; there is no reset |
///
/// # Back-pressure
/// While `poll_write` is pending, the container can fill its window, and then it waits. While the container takes
/// nothing, the engine does not read the stream. The engine buffers no more than its rings hold.
///
/// # Errors
/// An error of `poll_read` resets the container's connection, behind the bytes that were read before. An error of
/// `poll_write` does so too, once the stream has nothing left to read.
///
/// # Panics
/// A panic ends the connection, and no other.
///
/// # Examples
/// A stream that counts the bytes from the container, and a Dialer that puts it around another Dialer's streams:
///
/// ```
/// use std::io;
/// use std::pin::Pin;
/// use std::task::{Context, Poll, ready};
///
/// use nsnet_host::{ByteStream, DialError, Dialer, Flow, Stream, async_trait};
/// use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
///
/// struct Counted {
///     inner: Stream,
///     sent: usize,
/// }
///
/// impl ByteStream for Counted {
///     fn abort(self: Box<Self>) {
///         println!("reset after {} bytes", self.sent);
///         self.inner.abort();
///     }
/// }
///
/// impl AsyncRead for Counted {
///     fn poll_read(
///         mut self: Pin<&mut Self>,
///         cx: &mut Context<'_>,
///         buffer: &mut ReadBuf<'_>,
///     ) -> Poll<io::Result<()>> {
///         Pin::new(&mut self.inner).poll_read(cx, buffer)
///     }
/// }
///
/// impl AsyncWrite for Counted {
///     fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
///         let sent = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
///         self.sent += sent;
///         Poll::Ready(Ok(sent))
///     }
///
///     fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
///         Pin::new(&mut self.inner).poll_flush(cx)
///     }
///
///     fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
///         Pin::new(&mut self.inner).poll_shutdown(cx)
///     }
/// }
///
/// struct Counting<D>(D);
///
/// #[async_trait]
/// impl<D: Dialer> Dialer for Counting<D> {
///     fn inner(&self) -> &dyn Dialer {
///         &self.0
///     }
///
///     async fn dial_tcp(&self, flow: &Flow) -> Result<Stream, DialError> {
///         let inner = self.0.dial_tcp(flow).await?;
///         Ok(Stream::from_byte_stream(Counted { inner, sent: 0 }))
///     }
/// }
/// ```
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Ends the stream at once. The other end sees a reset, if this kind of stream has one.
    ///
    /// The engine calls it, instead of dropping the stream, when the container has reset its connection. It also does
    /// so when the connection ends before the stream has all its bytes. The default drops the stream. A wrapper must
    /// call [`Stream::abort`] on the stream inside, or the other end sees a clean end.
    fn abort(self: Box<Self>) {}
}

impl ByteStream for TcpStream {
    fn abort(self: Box<Self>) {
        reset(*self);
    }
}

impl ByteStream for Stream {
    fn abort(self: Box<Self>) {
        Self::abort(*self);
    }
}

impl ByteStream for UnixStream {}

impl ByteStream for DuplexStream {}

/// The upstream end of a TCP flow: anything that reads and writes bytes.
///
/// | the stream | the container sees |
/// |---|---|
/// | reads zero bytes | FIN: this direction has ended |
/// | fails to read, with `ConnectionReset` or any other error | RST, behind the bytes that were read before |
///
/// | the container sends | the stream sees |
/// |---|---|
/// | FIN | `poll_shutdown`, once every byte before it is written |
/// | RST | [`ByteStream::abort`] |
///
/// # Examples
/// ```
/// use nsnet_host::Stream;
///
/// let (near, _far) = tokio::io::duplex(64 * 1024);
/// let stream = Stream::from(near);
/// ```
pub struct Stream(Inner);

enum Inner {
    /// Not boxed, because this kind can report a reset without being read.
    Tcp(TcpStream),
    Abortable(Box<dyn ByteStream>),
    Plain(Box<dyn ReadWrite>),
}

trait ReadWrite: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ReadWrite for T {}

impl Stream {
    /// Takes any stream. When the container resets its connection, the stream is merely dropped.
    ///
    /// To pass the reset on, use `Stream::from` for a [`TcpStream`], and [`from_byte_stream`](Self::from_byte_stream)
    /// for a wrapper around one.
    #[must_use]
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Inner::Plain(Box::new(stream)))
    }

    /// Takes a stream that implements its own reset.
    #[must_use]
    pub fn from_byte_stream(stream: impl ByteStream + 'static) -> Self {
        Self(Inner::Abortable(Box::new(stream)))
    }

    /// Ends the stream at once. The other end sees a reset if this kind of stream has one, see [`ByteStream`].
    pub fn abort(self) {
        match self.0 {
            Inner::Tcp(stream) => reset(stream),
            Inner::Abortable(stream) => stream.abort(),
            Inner::Plain(stream) => drop(stream),
        }
    }

    /// Resolves once the other end has reset the connection. Only TCP can tell without reading.
    pub(crate) async fn is_reset(&self) {
        match &self.0 {
            // Fails only with the runtime.
            Inner::Tcp(stream) => drop(stream.ready(Interest::ERROR).await),
            Inner::Abortable(_) | Inner::Plain(_) => future::pending().await,
        }
    }

    fn inner(self: Pin<&mut Self>) -> Pin<&mut dyn ReadWrite> {
        match &mut self.get_mut().0 {
            Inner::Tcp(stream) => Pin::new(stream),
            Inner::Abortable(stream) => Pin::new(stream),
            Inner::Plain(stream) => Pin::new(&mut **stream),
        }
    }
}

/// Closes a connection so that the other end sees a reset.
fn reset(stream: TcpStream) {
    // Fails only for a connection that has ended by itself.
    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self(Inner::Tcp(stream))
    }
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        Self::from_byte_stream(stream)
    }
}

impl From<DuplexStream> for Stream {
    fn from(stream: DuplexStream) -> Self {
        Self::from_byte_stream(stream)
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Tcp(stream) => f.debug_tuple("Stream").field(stream).finish(),
            Inner::Abortable(_) | Inner::Plain(_) => f.debug_struct("Stream").finish_non_exhaustive(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.inner().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.inner().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Both ends of a TCP connection.
    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (near, accepted) = tokio::join!(connecting, listener.accept());
        (near.unwrap(), accepted.unwrap().0)
    }

    /// The result of the other end's read once its peer is gone.
    async fn end(mut far: impl AsyncRead + Unpin) -> io::Result<usize> {
        far.read(&mut [0; 16]).await
    }

    #[tokio::test]
    async fn an_aborted_connection_is_reset_behind_any_number_of_wrappers() {
        let wrappers: [fn(TcpStream) -> Stream; 4] = [
            Stream::from,
            Stream::from_byte_stream,
            |near| Stream::from_byte_stream(Stream::from(near)),
            |near| Stream::from_byte_stream(Stream::from_byte_stream(near)),
        ];
        for wrap in wrappers {
            let (near, far) = connection().await;
            wrap(near).abort();
            assert_eq!(end(far).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn a_stream_that_is_dropped_ends_cleanly_and_so_does_one_without_an_abort() {
        let ends: [fn(TcpStream); 3] = [
            |near| drop(Stream::from(near)),
            |near| drop(Stream::from_byte_stream(near)),
            |near| Stream::new(near).abort(),
        ];
        for close in ends {
            let (near, far) = connection().await;
            close(near);
            assert_eq!(end(far).await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn streams_that_know_no_reset_end_when_they_are_aborted() {
        let (near, far) = tokio::io::duplex(16);
        Stream::from(near).abort();
        assert_eq!(end(far).await.unwrap(), 0);
        let (near, far) = UnixStream::pair().unwrap();
        Stream::from(near).abort();
        assert_eq!(end(far).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn bytes_and_ends_pass_through_every_kind_of_stream() {
        let wrappers: [fn(DuplexStream) -> Stream; 3] = [Stream::from, Stream::from_byte_stream, Stream::new];
        for wrap in wrappers {
            let (near, mut far) = tokio::io::duplex(16);
            let mut stream = wrap(near);
            stream.write_all(b"to").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut heard = Vec::new();
            far.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"to");
            far.write_all(b"from").await.unwrap();
            drop(far);
            heard.clear();
            stream.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"from");
        }
    }

    #[tokio::test]
    async fn a_reset_is_known_of_without_reading() {
        let (near, far) = connection().await;
        let stream = Stream::from(near);
        Stream::from(far).abort();
        stream.is_reset().await;
    }
}
