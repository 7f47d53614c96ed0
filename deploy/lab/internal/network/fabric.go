// Package network builds the lab's links: a fabric that joins the nodes, a bridge on each node, and the pods' ends.
//
//	fabric (control plane) 10.89.0.1 --- node n 10.89.0.(10+n) --- pods 10.244.n.0/24
package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/vishvananda/netlink"
)

// Addresses of the lab. They exist in its own network namespaces only.
const (
	FabricAddress = "10.89.0.1"
	fabricBridge  = "fabric"
	nodeLink      = "eth0"
	// PodBridge is the bridge of a node that its pods hang on.
	PodBridge = "cni0"
	// PodRange holds the pods' addresses.
	PodRange = "10.244.0.0/16"
	// ServiceRange holds the VIPs of Services.
	ServiceRange = "10.96.0.0/16"
	// DNSAddress is the VIP of the cluster's name server.
	DNSAddress = "10.96.0.10"
	// OutsideAddress is of a server outside of the mesh and of the cluster.
	OutsideAddress = "192.0.2.10"
)

// linkWait bounds how long a node waits for its end of the fabric.
const linkWait = 5 * time.Second

// NodeAddress is the address of the node with this number, from 1.
func NodeAddress(number int) string { return fmt.Sprintf("10.89.0.%d", 10+number) }

func podNetwork(number int) string { return fmt.Sprintf("10.244.%d.0/24", number) }

func podGateway(number int) string { return fmt.Sprintf("10.244.%d.1", number) }

// PodsMax is how many pods fit on a node.
const PodsMax = 253

// PodAddress is the address of the index-th pod of a node, from 0 to below PodsMax.
func PodAddress(number, index int) string {
	return fmt.Sprintf("10.244.%d.%d", number, 2+index)
}

// MakeFabric makes the fabric in the current namespace, which is the control plane's.
func MakeFabric(nodes int) error {
	bridge, err := makeBridge(fabricBridge, FabricAddress+"/24")
	if err != nil {
		return err
	}
	for number := 1; number <= nodes; number++ {
		if err := route(bridge, podNetwork(number), NodeAddress(number)); err != nil {
			return err
		}
	}
	if err := addAddress(bridge, OutsideAddress+"/32"); err != nil {
		return err
	}
	// Pods look for VIPs at their node; so does the control plane, at the first one.
	if err := route(bridge, ServiceRange, NodeAddress(1)); err != nil {
		return err
	}
	return forward()
}

// JoinNode gives the namespace of a process its end of the fabric.
func JoinNode(number, pid int) error {
	name := fmt.Sprintf("node%d", number)
	if err := addPair(name, nodeLink, netlink.NsPid(pid), hardwareAddress(net.ParseIP(NodeAddress(number)))); err != nil {
		return err
	}
	return attach(name, fabricBridge)
}

// SettleNode addresses and routes the current namespace as the one of a node.
func SettleNode(number, nodes int) error {
	link, err := awaitLink(nodeLink)
	if err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	if err := addAddress(link, NodeAddress(number)+"/24"); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s up: %w", nodeLink, err)
	}
	if err := route(link, "0.0.0.0/0", FabricAddress); err != nil {
		return err
	}
	for other := 1; other <= nodes; other++ {
		if other != number {
			if err := route(link, podNetwork(other), NodeAddress(other)); err != nil {
				return err
			}
		}
	}
	if _, err := makeBridge(PodBridge, podGateway(number)+"/24"); err != nil {
		return err
	}
	return forward()
}

func awaitLink(name string) (netlink.Link, error) {
	for deadline := time.Now().Add(linkWait); ; {
		link, err := netlink.LinkByName(name)
		if err == nil {
			return link, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("link %s did not come: %w", name, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func makeBridge(name, address string) (netlink.Link, error) {
	parsed, _, err := net.ParseCIDR(address)
	if err != nil {
		return nil, err
	}
	// A hardware address of its own: else it is that of some port and changes as pods come and go, and for seconds their
	// packets go to one that nobody has.
	attributes := netlink.LinkAttrs{Name: name, HardwareAddr: hardwareAddress(parsed)}
	bridge := &netlink.Bridge{LinkAttrs: attributes}
	if err := netlink.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("bridge %s: %w", name, err)
	}
	if err := addAddress(bridge, address); err != nil {
		return nil, err
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return nil, fmt.Errorf("%s up: %w", name, err)
	}
	return bridge, loopbackUp()
}

func loopbackUp() error {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if err := netlink.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	return nil
}

// hardwareAddress is made of an IPv4 address, so that neighbours who remember an earlier owner of that address reach the
// new one at once.
func hardwareAddress(address net.IP) net.HardwareAddr {
	return append(net.HardwareAddr{0x0a, 0x58}, address.To4()...)
}

func addPair(name, peer string, namespace any, hardware net.HardwareAddr) error {
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer, PeerNamespace: namespace, PeerHardwareAddr: hardware,
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("pair %s and %s: %w", name, peer, err)
	}
	return nil
}

func attach(name, bridge string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("%s: %w", bridge, err)
	}
	if err := netlink.LinkSetMaster(link, master); err != nil {
		return fmt.Errorf("%s at %s: %w", name, bridge, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s up: %w", name, err)
	}
	return nil
}

func addAddress(link netlink.Link, address string) error {
	parsed, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, parsed); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("address %s: %w", address, err)
	}
	return nil
}

func route(link netlink.Link, network, gateway string) error {
	_, destination, err := net.ParseCIDR(network)
	if err != nil {
		return err
	}
	path := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: destination, Gw: net.ParseIP(gateway)}
	if err := netlink.RouteAdd(path); err != nil {
		return fmt.Errorf("route %s via %s: %w", network, gateway, err)
	}
	return nil
}

func forward() error {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("forwarding: %w", err)
	}
	return nil
}
