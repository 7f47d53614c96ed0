package network

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// namespaceDir is where a node keeps its pods' namespaces, as container runtimes do.
const namespaceDir = "/run/netns"

// Pod is the network namespace of a pod, kept by a mount of the node.
type Pod struct {
	// Path is where the namespace is mounted.
	Path string
	// Address is the pod's, without prefix length.
	Address string
	// Link is the node's end of the pod's pair.
	Link string
	file *os.File
}

// MakePod makes a pod's namespace with an address on the bridge of a node. index must be unique among its pods.
func MakePod(name, address string, number, index int) (*Pod, error) {
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil {
		return nil, err
	}
	pod := &Pod{Path: filepath.Join(namespaceDir, name), Address: address, Link: fmt.Sprintf("pod%d", index)}
	if err := os.WriteFile(pod.Path, nil, 0o644); err != nil {
		return nil, err
	}
	if err := isolate(pod.Path); err != nil {
		return nil, fmt.Errorf("namespace of %s: %w", name, err)
	}
	file, err := os.Open(pod.Path)
	if err != nil {
		return nil, err
	}
	pod.file = file
	if err := addPair(pod.Link, nodeLink, netlink.NsFd(int(file.Fd())), hardwareAddress(net.ParseIP(address))); err != nil {
		return nil, err
	}
	if err := attach(pod.Link, PodBridge); err != nil {
		return nil, err
	}
	return pod, pod.Within(func() error {
		if err := loopbackUp(); err != nil {
			return err
		}
		link, err := netlink.LinkByName(nodeLink)
		if err != nil {
			return err
		}
		if err := addAddress(link, address+"/24"); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		return route(link, "0.0.0.0/0", podGateway(number))
	})
}

// isolate mounts a new network namespace at path.
func isolate(path string) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
}

// Within runs a function on a thread that is in the pod's namespace. Processes that it starts are in there too.
func (p *Pod) Within(function func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(p.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", p.Path, err)
		}
		return function()
	})
}

// Remove takes the namespace away; the links go with it.
func (p *Pod) Remove() error {
	if err := p.file.Close(); err != nil {
		return err
	}
	// The link goes at once, also when somebody still holds the namespace.
	if link, err := netlink.LinkByName(p.Link); err == nil {
		_ = netlink.LinkDel(link)
	}
	if err := unix.Unmount(p.Path, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", p.Path, err)
	}
	return os.Remove(p.Path)
}

// onThread runs a function on a thread of its own, which moves between namespaces and is then thrown away.
func onThread(function func() error) error {
	result := make(chan error)
	go func() {
		// Never unlocked: the runtime ends the thread with the goroutine.
		runtime.LockOSThread()
		result <- function()
	}()
	return <-result
}
