//! Whether anything is carried at all.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use super::wait_for_end_of_input;
use crate::actor::{Report, Say, say};
use crate::error::{Context, Result};

/// What a first connection is made to.
pub(super) fn hang_up(listener: &TcpListener) -> Result<()> {
    loop {
        drop(listener.accept()?);
    }
}

const BYTES: usize = 1 << 20;

pub(super) fn serve(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.read_exact(&mut vec![0; BYTES])?;
    stream.write_all(&[1])?;
    wait_for_end_of_input();
    Ok(())
}

pub(super) fn test(server: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(server).context("connect")?;
    stream.write_all(&vec![0; BYTES])?;
    stream.read_exact(&mut [0])?;
    say(&Say::Report(Report { amount: BYTES as u64, seconds: 1.0, ..Report::default() }))
}
