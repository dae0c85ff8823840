//! What two ranks have for each other, as frames on one connection.
//!
//! A frame is a header of 16 bytes (what it is, the tag, a length) and, for a part of a message, its bytes. A message
//! is sent once its receiver has a place for it: the receiver says so by a frame of its own, so nothing is kept that
//! was not asked for, and bytes go from tensor to tensor. Messages of several tags take turns, a part each; where a
//! tag has several messages, one follows the other.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use coxswain_native::net::{DeliveryFailure, HostBytes, Pending};

use super::locked;
use super::stream::Stream;

const HEADER_BYTES: usize = 16;
/// A frame with bytes of the oldest message of its tag that has not ended.
const PART: u32 = 1;
/// A frame that says: there is a place for a message of this tag and length.
const PLACE: u32 = 2;

/// The most bytes of a message in one frame. A short message waits for one part of a long one at most.
const PART_BYTES: usize = 1 << 20;
/// Bytes that are read before it is known what they are.
const READ_BYTES: usize = 16 << 10;

/// The end of a message, which one thread brings about and another waits for.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    result: Mutex<Option<Result<(), DeliveryFailure>>>,
    told: Condvar,
}

impl Ended {
    fn tell(&self, result: Result<(), DeliveryFailure>) {
        locked(&self.result).get_or_insert(result);
        self.told.notify_all();
    }
}

/// Waits until a message has arrived, or is on its way.
pub(crate) struct MessageTicket(Arc<Ended>);

impl Pending for MessageTicket {
    fn wait(&mut self, limit: Duration) -> Result<(), DeliveryFailure> {
        let end = Instant::now() + limit;
        let mut result = locked(&self.0.result);
        loop {
            if let Some(result) = &*result {
                return result.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(DeliveryFailure::new(format!("nothing came of it in {} s", limit.as_secs())));
            }
            result = self
                .0
                .told
                .wait_timeout(result, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |waited| waited.0);
        }
    }
}

/// A message on its way out, or on its way in.
struct Message {
    memory: HostBytes,
    done: usize,
    ended: Arc<Ended>,
}

impl Message {
    fn new(memory: HostBytes) -> (Message, MessageTicket) {
        let ended = Arc::new(Ended::default());
        (Message { memory, done: 0, ended: ended.clone() }, MessageTicket(ended))
    }

    fn left(&self) -> usize {
        self.memory.bytes() - self.done
    }
}

/// Whether the two ranks are connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkPhase {
    /// They have had nothing to say to each other.
    Idle,
    /// This end connects to the other.
    Dialing,
    /// The other end's connection is about to be taken, at this attempt.
    Taking(u64),
    /// They are connected.
    Up,
    /// They were, or could not be; why.
    Down(DeliveryFailure),
}

/// Whether there is more to do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The socket tells when there is.
    Wait,
    /// The turn is over, and the socket has more.
    Again,
}

/// One rank's end of what it has with another.
pub(crate) struct Link {
    pub(crate) phase: LinkPhase,
    stream: Option<Stream>,
    /// Whether the other end was told that nothing more comes.
    ended: bool,
    out: Outbox,
    inbox: Inbox,
}

impl Link {
    /// Nothing yet.
    pub(crate) fn new() -> Link {
        Link {
            phase: LinkPhase::Idle,
            stream: None,
            ended: false,
            out: Outbox::default(),
            inbox: Inbox::default(),
        }
    }

    /// Starts sending.
    pub(crate) fn send(&mut self, memory: HostBytes, tag: u32) -> Result<MessageTicket, DeliveryFailure> {
        self.expect_alive()?;
        let (message, ticket) = Message::new(memory);
        self.out.add(message, tag);
        Ok(ticket)
    }

    /// Starts receiving.
    pub(crate) fn recv(&mut self, memory: HostBytes, tag: u32) -> Result<MessageTicket, DeliveryFailure> {
        self.expect_alive()?;
        let (message, ticket) = Message::new(memory);
        self.out.announce(tag, message.memory.bytes());
        self.inbox.messages.entry(tag).or_default().push_back(message);
        Ok(ticket)
    }

    /// Bytes of messages that have come or gone.
    pub(crate) fn moved_bytes(&self) -> u64 {
        self.out.moved_bytes + self.inbox.moved_bytes
    }

    /// Whether something waits for a connection.
    pub(crate) fn has_work(&self) -> bool {
        let sends = self.out.queues.values().any(|queue| !queue.messages.is_empty());
        sends || self.inbox.messages.values().any(|messages| !messages.is_empty())
    }

    fn expect_alive(&self) -> Result<(), DeliveryFailure> {
        match &self.phase {
            LinkPhase::Down(failure) => Err(failure.clone()),
            _ => Ok(()),
        }
    }

    /// The connection stands.
    pub(crate) fn up(&mut self, stream: Stream) {
        (self.phase, self.stream) = (LinkPhase::Up, Some(stream));
        self.inbox.buffer = vec![0; READ_BYTES].into();
    }

    /// Sends and receives what can be without waiting, at most about so many bytes each way.
    pub(crate) fn advance(&mut self, bytes: usize) -> Then {
        let Some(stream) = &mut self.stream else { return Then::Wait };
        let read = self.inbox.read(stream, &mut self.out, bytes);
        let moved = read.and_then(|read| Ok((read, self.out.write(stream, bytes)?)));
        self.judge(moved)
    }

    /// Sends what can be without waiting, at most about so many bytes.
    pub(crate) fn flush(&mut self, bytes: usize) -> Then {
        let Some(stream) = &mut self.stream else { return Then::Wait };
        let written = self.out.write(stream, bytes);
        self.judge(written.map(|then| (then, Then::Wait)))
    }

    fn judge(&mut self, moved: io::Result<(Then, Then)>) -> Then {
        match moved {
            Ok((Then::Wait, Then::Wait)) => Then::Wait,
            Ok(_) => Then::Again,
            Err(error) => {
                self.fail(words(&error));
                Then::Wait
            }
        }
    }

    /// Takes in no more messages and starts none. What was sent last is brought to its end by [`Link::drain`].
    pub(crate) fn end(&mut self) {
        let stream = self.stream.take();
        self.fail(DeliveryFailure::new("this rank has left"));
        self.stream = stream;
    }

    /// After [`Link::end`]: reads past what the other end still sends. Returns whether more may come.
    pub(crate) fn drain(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        self.ended = self.ended || stream.end();
        let mut bytes = vec![0; READ_BYTES];
        loop {
            match stream.read(&mut [IoSliceMut::new(&mut bytes)]) {
                Ok(read) if read > 0 => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                _ => {
                    self.stream = None;
                    return false;
                }
            }
        }
    }

    /// Ends all that is pending, and what is started from now on.
    pub(crate) fn fail(&mut self, failure: DeliveryFailure) {
        if !matches!(self.phase, LinkPhase::Down(_)) {
            self.phase = LinkPhase::Down(failure.clone());
        }
        if let Some(stream) = self.stream.take() {
            stream.cut();
        }
        let sends = self.out.queues.drain().flat_map(|(_, queue)| queue.messages);
        let receives = self.inbox.messages.drain().flat_map(|(_, messages)| messages);
        sends.chain(receives).for_each(|message| message.ended.tell(Err(failure.clone())));
        (self.out, self.inbox) = (Outbox::default(), Inbox::default());
    }
}

/// What an error of a connection means here.
pub(crate) fn words(error: &io::Error) -> DeliveryFailure {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::UnexpectedEof => DeliveryFailure::new("it closed the connection"),
        Kind::ConnectionReset | Kind::BrokenPipe => DeliveryFailure::new("its connection broke off"),
        // A socket with a time-out calls its end the last of these.
        Kind::TimedOut | Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::WouldBlock => {
            DeliveryFailure {
                why: format!("its machine, or the network to it, does not answer ({error})"),
                no_answer: true,
            }
        }
        _ => DeliveryFailure::new(error.to_string()),
    }
}

fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Why a message cannot be moved any more.
fn given_up() -> io::Error {
    io::Error::other("an exchange was given up in the middle of a message")
}

fn header(what: u32, tag: u32, bytes: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&what.to_le_bytes());
    header[4..8].copy_from_slice(&tag.to_le_bytes());
    header[8..].copy_from_slice(&(bytes as u64).to_le_bytes());
    header
}

/// What goes out.
#[derive(Default)]
struct Outbox {
    /// Frames without bytes, which go first.
    places: VecDeque<[u8; HEADER_BYTES]>,
    queues: HashMap<u32, Queue>,
    /// Tags with a message that has a place.
    turns: VecDeque<u32>,
    frame: Option<Frame>,
    moved_bytes: u64,
}

/// Messages of one tag, and the lengths of the places for them.
#[derive(Default)]
struct Queue {
    messages: VecDeque<Message>,
    places: VecDeque<u64>,
}

/// A frame that is being written.
struct Frame {
    header: [u8; HEADER_BYTES],
    header_done: usize,
    /// The tag of the message that its bytes are of.
    tag: Option<u32>,
    left: usize,
}

impl Outbox {
    fn announce(&mut self, tag: u32, bytes: usize) {
        self.places.push_back(header(PLACE, tag, bytes));
    }

    fn add(&mut self, message: Message, tag: u32) {
        let queue = self.queues.entry(tag).or_default();
        queue.messages.push_back(message);
        if queue.messages.len() == 1 && !queue.places.is_empty() {
            self.turns.push_back(tag);
        }
    }

    fn place(&mut self, tag: u32, bytes: u64) {
        let queue = self.queues.entry(tag).or_default();
        queue.places.push_back(bytes);
        if queue.places.len() == 1 && !queue.messages.is_empty() {
            self.turns.push_back(tag);
        }
    }

    fn next(&mut self) -> io::Result<Option<Frame>> {
        if let Some(header) = self.places.pop_front() {
            return Ok(Some(Frame { header, header_done: 0, tag: None, left: 0 }));
        }
        let Some(tag) = self.turns.pop_front() else { return Ok(None) };
        let queue = self.queues.entry(tag).or_default();
        let (Some(message), Some(place)) = (queue.messages.front(), queue.places.front()) else {
            return Ok(None);
        };
        let bytes = message.memory.bytes();
        if *place != bytes as u64 {
            return Err(broken(format!(
                "it waits for {place} bytes where this rank has {bytes} (tag {tag})"
            )));
        }
        let left = message.left().min(PART_BYTES);
        Ok(Some(Frame { header: header(PART, tag, left), header_done: 0, tag: Some(tag), left }))
    }

    /// Writes until the socket takes no more, or about so many bytes.
    fn write(&mut self, stream: &mut Stream, bytes: usize) -> io::Result<Then> {
        let mut written = 0;
        while written < bytes {
            if self.frame.is_none() {
                self.frame = self.next()?;
            }
            let Some(frame) = &mut self.frame else {
                return match stream.flush() {
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                    _ => Ok(Then::Wait),
                };
            };
            let head = &frame.header[frame.header_done..];
            let message = frame.tag.and_then(|tag| self.queues.get_mut(&tag)?.messages.front_mut());
            let wrote = match &message {
                Some(message) if frame.left > 0 => {
                    let write =
                        |part: &[u8]| stream.write(&[IoSlice::new(head), IoSlice::new(&part[..frame.left])]);
                    message.memory.read(message.done, write).ok_or_else(given_up)?
                }
                _ => stream.write(&[IoSlice::new(head)]),
            };
            let wrote = match wrote {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Then::Wait),
                Ok(0) => return Err(io::ErrorKind::BrokenPipe.into()),
                wrote => wrote?,
            };
            written += wrote;
            let of_header = wrote.min(HEADER_BYTES - frame.header_done);
            frame.header_done += of_header;
            frame.left -= wrote - of_header;
            if let Some(message) = message {
                message.done += wrote - of_header;
                self.moved_bytes += (wrote - of_header) as u64;
            }
            if frame.header_done == HEADER_BYTES && frame.left == 0 {
                let tag = frame.tag;
                self.frame = None;
                tag.into_iter().for_each(|tag| self.part_written(tag));
            }
        }
        Ok(Then::Again)
    }

    /// A part of the first message of this tag is on its way.
    fn part_written(&mut self, tag: u32) {
        let Some(queue) = self.queues.get_mut(&tag) else { return };
        if queue.messages.front().is_some_and(|message| message.left() == 0) {
            queue.places.pop_front();
            queue.messages.pop_front().into_iter().for_each(|message| message.ended.tell(Ok(())));
        }
        if !queue.messages.is_empty() && !queue.places.is_empty() {
            self.turns.push_back(tag);
        }
    }
}

/// What comes in.
#[derive(Default)]
struct Inbox {
    messages: HashMap<u32, VecDeque<Message>>,
    buffer: Box<[u8]>,
    /// The bytes of the buffer that are not used yet.
    start: usize,
    end: usize,
    /// The tag of the part that is being read, and its bytes that are still to come.
    part: Option<(u32, usize)>,
    moved_bytes: u64,
}

impl Inbox {
    /// Reads until there is no more, or about so many bytes.
    fn read(&mut self, stream: &mut Stream, out: &mut Outbox, bytes: usize) -> io::Result<Then> {
        let mut taken = 0;
        while taken < bytes {
            taken += match self.part {
                Some((tag, left)) => match self.bytes(stream, tag, left)? {
                    Some(read) => read,
                    None => return Ok(Then::Wait),
                },
                None if self.end - self.start >= HEADER_BYTES => {
                    self.frame(out)?;
                    HEADER_BYTES
                }
                None => {
                    if !self.fill(stream)? {
                        return Ok(Then::Wait);
                    }
                    0
                }
            };
        }
        Ok(Then::Again)
    }

    /// Gets more bytes into the buffer; `false` where there are none now.
    fn fill(&mut self, stream: &mut Stream) -> io::Result<bool> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let read = arrived(stream.read(&mut [IoSliceMut::new(&mut self.buffer[self.end..])]))?;
        self.end += read.unwrap_or(0);
        Ok(read.is_some())
    }

    /// Takes in a header.
    fn frame(&mut self, out: &mut Outbox) -> io::Result<()> {
        let header = &self.buffer[self.start..self.start + HEADER_BYTES];
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (what, tag) = (word(0), word(4));
        let bytes = u64::from(word(8)) | u64::from(word(12)) << 32;
        self.start += HEADER_BYTES;
        match what {
            PLACE => out.place(tag, bytes),
            PART => {
                let message = self.messages.get(&tag).and_then(VecDeque::front);
                let room = message.map_or(0, Message::left);
                if message.is_none() || bytes > room as u64 || (bytes == 0 && room > 0) {
                    return Err(broken(format!(
                        "it sent {bytes} bytes where {room} were wanted (tag {tag})"
                    )));
                }
                self.part = Some((tag, bytes as usize));
                if bytes == 0 {
                    self.arrive(tag, 0, 0);
                }
            }
            _ => return Err(broken(format!("it sent a frame of an unknown kind ({what})"))),
        }
        Ok(())
    }

    /// Takes in bytes of a part; `None` where there are none now.
    fn bytes(&mut self, stream: &mut Stream, tag: u32, left: usize) -> io::Result<Option<usize>> {
        let message = self.messages.get(&tag).and_then(VecDeque::front).ok_or_else(given_up)?;
        let held = &self.buffer[self.start..self.end];
        let read = if held.is_empty() {
            let read = |room: &mut [u8]| {
                // What follows the part is read along, into the buffer.
                stream.read(&mut [IoSliceMut::new(&mut room[..left]), IoSliceMut::new(&mut self.buffer)])
            };
            let Some(read) = arrived(message.memory.write(message.done, read).ok_or_else(given_up)?)? else {
                return Ok(None);
            };
            (self.start, self.end) = (0, read.saturating_sub(left));
            read.min(left)
        } else {
            let count = held.len().min(left);
            let copy = |room: &mut [u8]| room[..count].copy_from_slice(&held[..count]);
            message.memory.write(message.done, copy).ok_or_else(given_up)?;
            self.start += count;
            count
        };
        self.arrive(tag, read, left);
        Ok(Some(read))
    }

    /// Bytes of a part are in their place.
    fn arrive(&mut self, tag: u32, read: usize, left: usize) {
        self.part = (left > read).then_some((tag, left - read));
        let Some(messages) = self.messages.get_mut(&tag) else { return };
        let Some(message) = messages.front_mut() else { return };
        message.done += read;
        self.moved_bytes += read as u64;
        if message.left() == 0 {
            messages.pop_front().into_iter().for_each(|message| message.ended.tell(Ok(())));
        }
    }
}

/// What a read brought: bytes, or none now.
fn arrived(read: io::Result<usize>) -> io::Result<Option<usize>> {
    match read {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
