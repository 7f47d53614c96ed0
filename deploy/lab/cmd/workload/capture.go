package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"corelane/lab/internal/traffic"
)

// frameMax is longer than any frame on the lab's links, offloads included.
const frameMax = 1 << 17

// capture listens to all frames of an interface for a while and prints how many TCP segments with payload went to or
// from each port, and whether -marker was readable in any.
func capture(arguments []string) error {
	flags := flag.NewFlagSet("capture", flag.ExitOnError)
	duration := flags.Duration("for", 2*time.Second, "how long to listen")
	marker := flags.String("marker", "", "bytes to look for in the clear")
	ready := flags.String("ready", "", "file to make once listening")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("one argument: the interface")
	}
	socket, err := listen(flags.Arg(0))
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	if *ready != "" {
		if err := os.WriteFile(*ready, nil, 0o600); err != nil {
			return err
		}
	}
	capture := traffic.Capture{Ports: map[int]int{}}
	frame := make([]byte, frameMax)
	for deadline := time.Now().Add(*duration); time.Now().Before(deadline); {
		length, _, err := unix.Recvfrom(socket, frame, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("recvfrom: %w", err)
		}
		look(frame[:length], []byte(*marker), &capture)
	}
	return json.NewEncoder(os.Stdout).Encode(capture)
}

func listen(name string) (int, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	// The kernel takes the protocol in network order.
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP))
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(protocol))
	if err != nil {
		return 0, fmt.Errorf("packet socket (CAP_NET_RAW is needed): %w", err)
	}
	if err := unix.Bind(socket, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Index}); err != nil {
		return 0, fmt.Errorf("bind to %s: %w", name, err)
	}
	timeout := unix.Timeval{Usec: 100_000}
	return socket, unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
}

// look takes one IPv4 packet into account.
func look(packet, marker []byte, capture *traffic.Capture) {
	if len(packet) < 20 || packet[0]>>4 != 4 || packet[9] != unix.IPPROTO_TCP {
		return
	}
	segment := packet[min(len(packet), int(packet[0]&0xf)*4):]
	if len(segment) < 20 {
		return
	}
	payload := segment[min(len(segment), int(segment[12]>>4)*4):]
	if len(payload) == 0 {
		return
	}
	capture.Ports[int(binary.BigEndian.Uint16(segment[2:]))]++
	capture.Ports[int(binary.BigEndian.Uint16(segment))]++
	if len(marker) > 0 && bytes.Contains(payload, marker) {
		capture.Readable++
	}
}
