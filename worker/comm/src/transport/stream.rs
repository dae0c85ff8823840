//! Bytes of a connection, in plain text or over TLS, without waiting: `WouldBlock` says that the socket will tell when
//! there is more to do.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;

use mio::Registry;
use mio::net::TcpStream;
use rustls::Connection;

/// How much plain text waits for its encryption at most, in bytes.
const TLS_BUFFER_BYTES: usize = 256 << 10;

/// A connection between two ranks.
pub(crate) struct Stream {
    socket: TcpStream,
    tls: Option<Box<Connection>>,
}

impl Stream {
    /// A connection whose ends know each other.
    pub(crate) fn new(socket: std::net::TcpStream, tls: Option<Connection>) -> io::Result<Stream> {
        socket.set_nonblocking(true)?;
        let mut tls = tls.map(Box::new);
        if let Some(tls) = &mut tls {
            tls.set_buffer_limit(Some(TLS_BUFFER_BYTES));
        }
        Ok(Stream { socket: TcpStream::from_std(socket), tls })
    }

    /// Has `registry` tell of this connection by `token`.
    pub(crate) fn register(&mut self, registry: &Registry, token: mio::Token) -> io::Result<()> {
        registry.register(&mut self.socket, token, mio::Interest::READABLE | mio::Interest::WRITABLE)
    }

    /// Reads into the first of `buffers`, then into the second; 0 at the end.
    pub(crate) fn read(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return retried(|| self.socket.read_vectored(buffers)) };
        loop {
            match tls.reader().read_vectored(buffers) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            if retried(|| tls.read_tls(&mut self.socket))? == 0 {
                return Ok(0);
            }
            tls.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    /// Takes bytes to send; they may wait for [`Stream::flush`].
    pub(crate) fn write(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return retried(|| self.socket.write_vectored(buffers)) };
        while tls.wants_write() {
            retried(|| tls.write_tls(&mut self.socket))?;
        }
        let taken = tls.writer().write_vectored(buffers)?;
        match self.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    /// Sends what was taken.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                retried(|| tls.write_tls(&mut self.socket))?;
            }
        }
        Ok(())
    }

    /// Says that nothing more will be sent, once what was taken is on its way; `false` where it is not yet.
    pub(crate) fn end(&mut self) -> bool {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
        if self.flush().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            return false;
        }
        // It fails where the connection is gone already.
        let _ = self.socket.shutdown(Shutdown::Write);
        true
    }

    /// Ends both ways at once.
    pub(crate) fn cut(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// A call that a signal does not end.
fn retried(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
