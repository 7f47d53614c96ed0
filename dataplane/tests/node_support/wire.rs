//! What crosses the wire: every frame that the router between the pods sees.

use std::io::Read;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::net::NetworkNamespace;
use socket2::{Domain, Protocol, Socket, Type};

use super::PATIENCE;

/// `ETH_P_ALL`, in network order as packet(7) wants it.
const EVERY_PROTOCOL: i32 = 0x0300;
/// What a new tap is shown.
const PROOF: &[u8] = b"a frame that the tap must see";
/// Longest frame: segments are joined by the kernel.
const FRAME_BYTES_MAX: usize = 1 << 17;
/// Room for frames that the thread has not read yet.
const BACKLOG_BYTES: usize = 64 << 20;

/// Records frames until it is dropped.
pub struct Tap {
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tap {
    /// Listens to all links of a namespace.
    pub fn on(network: &NetworkNamespace) -> Self {
        let socket =
            network.within(|| Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERY_PROTOCOL))));
        let mut socket = socket.unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        // The kernel gives what it may; frames beyond it are lost.
        socket.set_recv_buffer_size(BACKLOG_BYTES).unwrap();
        let (frames, stopping) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (kept, stop): (Arc<Mutex<Vec<Vec<u8>>>>, _) = (frames.clone(), stopping.clone());
        let thread = std::thread::spawn(move || {
            let mut frame = vec![0; FRAME_BYTES_MAX];
            while !stop.load(Ordering::Relaxed) {
                if let Ok(length) = socket.read(&mut frame) {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(frame[..length].to_vec());
                }
            }
        });
        let tap = Self { frames, stopping, thread: Some(thread) };
        tap.prove_itself(network);
        tap
    }

    /// Waits until it has seen a frame that is sent for this.
    fn prove_itself(&self, network: &NetworkNamespace) {
        let socket = network.within(|| UdpSocket::bind("127.0.0.1:0")).unwrap().unwrap();
        let to = socket.local_addr().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while self.frames_with(PROOF) == 0 {
            assert!(Instant::now() < deadline, "no frame is seen");
            socket.send_to(PROOF, to).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn frames_with(&self, bytes: &[u8]) -> usize {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.iter().filter(|frame| frame.windows(bytes.len()).any(|window| window == bytes)).count()
    }

    /// Ends the recording; how many of its frames hold `bytes`.
    pub fn count(mut self, bytes: &[u8]) -> usize {
        self.stop();
        self.frames_with(bytes)
    }

    fn stop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop();
    }
}
