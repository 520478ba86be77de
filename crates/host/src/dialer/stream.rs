//! The upstream end of a TCP flow.

use std::fmt;
use std::future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// Any byte stream: what a [`Stream`] is made of.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// The upstream end of a TCP flow: anything that reads and writes bytes.
///
/// A read that returns an error of kind `ConnectionReset` (or any other error) is a reset and reaches the
/// container as RST; a read of zero bytes is the end of that direction and reaches it as FIN. In the other
/// direction, the container's FIN becomes `poll_shutdown`, its RST an abort: for a [`TcpStream`] an RST
/// (`SO_LINGER` 0, socket(7)), for any other stream a drop without shutdown.
///
/// # Examples
/// ```
/// # use nsnet_host::Stream;
/// let (near, _far) = tokio::io::duplex(64 * 1024);
/// let stream = Stream::new(near);
/// ```
pub struct Stream(Inner);

enum Inner {
    Tcp(TcpStream),
    Other(Box<dyn ByteStream>),
}

impl Stream {
    /// Wraps any stream. Use `From<TcpStream>` for TCP, it can pass a reset on.
    pub fn new(stream: impl ByteStream + 'static) -> Self {
        Self(Inner::Other(Box::new(stream)))
    }

    /// Ends the stream so that the other end sees a reset, as far as its kind has one.
    pub(crate) fn abort(self) {
        if let Inner::Tcp(stream) = self.0 {
            // Fails only for a connection that has ended by itself.
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Resolves once the other end has reset the connection, which only TCP can tell without reading.
    pub(crate) async fn is_reset(&self) {
        match &self.0 {
            // Fails only with the runtime.
            Inner::Tcp(stream) => drop(stream.ready(Interest::ERROR).await),
            Inner::Other(_) => future::pending().await,
        }
    }

    fn inner(self: Pin<&mut Self>) -> Pin<&mut dyn ByteStream> {
        match &mut self.get_mut().0 {
            Inner::Tcp(stream) => Pin::new(stream),
            Inner::Other(stream) => Pin::new(&mut **stream),
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self(Inner::Tcp(stream))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Tcp(stream) => f.debug_tuple("Stream").field(stream).finish(),
            Inner::Other(_) => f.debug_struct("Stream").finish_non_exhaustive(),
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
