// Package nameserver stands in for the cluster's DNS: it answers for Services and for names outside of the cluster that
// the lab makes up.
package nameserver

import (
	"context"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	suffix = ".svc.cluster.local."
	ttl    = 5
	// lookupTimeout bounds the call of the API that one answer needs.
	lookupTimeout = 2 * time.Second
)

// Server answers A queries.
type Server struct {
	Kube kubernetes.Interface
	// Outside maps names with a final dot to addresses.
	Outside map[string]string
}

// Start serves UDP and TCP on address until the process ends.
func (s *Server) Start(address string) error {
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	// They end with the process.
	go func() { _ = (&dns.Server{PacketConn: packets, Handler: s}).ActivateAndServe() }()
	go func() { _ = (&dns.Server{Listener: listener, Handler: s}).ActivateAndServe() }()
	return nil
}

// ServeDNS answers one query.
func (s *Server) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg)
	reply.SetReply(query)
	if len(query.Question) == 1 {
		question := query.Question[0]
		addresses, code := s.lookUp(strings.ToLower(question.Name))
		reply.Rcode = code
		for _, address := range addresses {
			if question.Qtype == dns.TypeA {
				header := dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}
				reply.Answer = append(reply.Answer, &dns.A{Hdr: header, A: net.ParseIP(address)})
			}
		}
	}
	// A client that has gone needs no answer.
	_ = w.WriteMsg(reply)
}

func (s *Server) lookUp(name string) ([]string, int) {
	if address, ok := s.Outside[name]; ok {
		return []string{address}, dns.RcodeSuccess
	}
	short, found := strings.CutSuffix(name, suffix)
	service, namespace, two := strings.Cut(short, ".")
	if !found || !two {
		return nil, dns.RcodeNameError
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	object, err := s.Kube.CoreV1().Services(namespace).Get(ctx, service, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, dns.RcodeNameError
	case err != nil:
		return nil, dns.RcodeServerFailure
	case object.Spec.ClusterIP != corev1.ClusterIPNone:
		return object.Spec.ClusterIPs, dns.RcodeSuccess
	}
	return s.headless(ctx, object)
}

// headless lists the addresses behind a Service without VIP.
func (s *Server) headless(ctx context.Context, service *corev1.Service) ([]string, int) {
	selector := metav1.LabelSelector{MatchLabels: service.Spec.Selector}
	options := metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(&selector)}
	pods, err := s.Kube.CoreV1().Pods(service.Namespace).List(ctx, options)
	if err != nil {
		return nil, dns.RcodeServerFailure
	}
	var addresses []string
	for _, pod := range pods.Items {
		if pod.Status.PodIP != "" {
			addresses = append(addresses, pod.Status.PodIP)
		}
	}
	rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	return addresses, dns.RcodeSuccess
}
