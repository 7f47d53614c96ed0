// Package controlplane runs etcd, the API server, the controllers and istiod as plain processes.
package controlplane

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"corelane/lab/internal/network"
	"corelane/lab/internal/process"
)

const (
	apiPort = "6443"
	// stopGrace is how long a program of the control plane may take to end.
	stopGrace = 5 * time.Second
)

// controllers are those that the lab's objects need.
var controllers = []string{
	"serviceaccount-controller", "root-ca-certificate-publisher-controller", "namespace-controller",
	"endpointslice-controller", "garbage-collector-controller", "deployment-controller", "replicaset-controller",
}

// ControlPlane is the running programs.
type ControlPlane struct {
	// Kubeconfig is a file that makes its reader an administrator.
	Kubeconfig string
	dir        string
	components string
	pki        *pki
	istiod     *process.Process
}

// Start starts etcd, the API server and the controllers, and waits until the API is served. components is the binary of
// all programs, dir is empty and the control plane's own. Istiod starts later, by StartIstiod.
func Start(ctx context.Context, components, dir string) (*ControlPlane, error) {
	plane := &ControlPlane{dir: dir, components: components, Kubeconfig: filepath.Join(dir, "admin.kubeconfig")}
	if err := plane.certificates(); err != nil {
		return nil, err
	}
	if _, err := plane.start("etcd", "--data-dir", filepath.Join(dir, "etcd")); err != nil {
		return nil, err
	}
	server, err := plane.start("kube-apiserver", plane.serverFlags()...)
	if err != nil {
		return nil, err
	}
	if err := plane.awaitAPI(ctx, server); err != nil {
		return nil, err
	}
	_, err = plane.start("kube-controller-manager",
		"--kubeconfig="+plane.Kubeconfig,
		"--controllers="+strings.Join(controllers, ","),
		"--use-service-account-credentials=true",
		"--service-account-private-key-file="+plane.pki.path("accounts.key"),
		"--root-ca-file="+plane.pki.path("ca.crt"),
		"--leader-elect=false",
		"--secure-port=0",
	)
	return plane, err
}

func (p *ControlPlane) certificates() error {
	made, err := newPKI(filepath.Join(p.dir, "pki"))
	if err != nil {
		return fmt.Errorf("certificates of the cluster: %w", err)
	}
	p.pki = made
	if err := made.server("server"); err != nil {
		return err
	}
	// Only the key pair is used: it signs the service accounts' tokens.
	if err := made.client("accounts", "accounts"); err != nil {
		return err
	}
	if err := made.client("admin", "lab", "system:masters"); err != nil {
		return err
	}
	config := api.NewConfig()
	config.Clusters["lab"] = &api.Cluster{
		Server:               "https://" + network.FabricAddress + ":" + apiPort,
		CertificateAuthority: made.path("ca.crt"),
	}
	config.AuthInfos["admin"] = &api.AuthInfo{
		ClientCertificate: made.path("admin.crt"), ClientKey: made.path("admin.key"),
	}
	config.Contexts["lab"] = &api.Context{Cluster: "lab", AuthInfo: "admin"}
	config.CurrentContext = "lab"
	return clientcmd.WriteToFile(*config, p.Kubeconfig)
}

func (p *ControlPlane) serverFlags() []string {
	return []string{
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0",
		"--advertise-address=" + network.FabricAddress,
		"--secure-port=" + apiPort,
		"--tls-cert-file=" + p.pki.path("server.crt"),
		"--tls-private-key-file=" + p.pki.path("server.key"),
		"--client-ca-file=" + p.pki.path("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + p.pki.path("accounts.crt"),
		"--service-account-signing-key-file=" + p.pki.path("accounts.key"),
		"--api-audiences=https://kubernetes.default.svc",
		"--authorization-mode=Node,RBAC",
		"--service-cluster-ip-range=" + network.ServiceRange,
		"--endpoint-reconciler-type=none",
		"--allow-privileged=true",
		"--profiling=false",
		"--cert-dir=" + filepath.Join(p.dir, "apiserver"),
	}
}

func (p *ControlPlane) awaitAPI(ctx context.Context, server *process.Process) error {
	config, err := clientcmd.BuildConfigFromFlags("", p.Kubeconfig)
	if err != nil {
		return err
	}
	probe, err := newProbe(config)
	if err != nil {
		return err
	}
	for {
		if probe(ctx) == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the API server did not become ready, see %s: %w", p.log("kube-apiserver"), ctx.Err())
		case <-server.Done():
			return fmt.Errorf("the API server ended, see %s", p.log("kube-apiserver"))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// StartIstiod starts istiod and waits until it serves proxies.
func (p *ControlPlane) StartIstiod(ctx context.Context) error {
	started, err := p.start("istiod", "discovery", "--kubeconfig="+p.Kubeconfig)
	if err != nil {
		return err
	}
	p.istiod = started
	for {
		if servesIstiod(ctx) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("istiod did not become ready, see %s: %w", p.log("istiod"), ctx.Err())
		case <-started.Done():
			return fmt.Errorf("istiod ended, see %s", p.log("istiod"))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// StopIstiod ends istiod; killed says not to let it say goodbye.
func (p *ControlPlane) StopIstiod(killed bool) {
	if killed {
		p.istiod.Kill()
	} else {
		p.istiod.Stop(stopGrace)
	}
}

// istiodEnvironment is that of Istio's chart for ambient meshes, with a short debounce so that scenarios are quick.
func istiodEnvironment() []string {
	return []string{
		"PILOT_ENABLE_AMBIENT=true",
		"CLUSTER_ID=Kubernetes",
		"REVISION=default",
		"POD_NAMESPACE=istio-system",
		"POD_NAME=istiod-lab",
		"SERVICE_ACCOUNT=istiod",
		"JWT_POLICY=third-party-jwt",
		"PILOT_CERT_PROVIDER=istiod",
		"CA_TRUSTED_NODE_ACCOUNTS=istio-system/ztunnel",
		"PILOT_DEBOUNCE_AFTER=5ms",
		"INJECTION_WEBHOOK_CONFIG_NAME=",
		"VALIDATION_WEBHOOK_CONFIG_NAME=",
	}
}

func (p *ControlPlane) start(name string, flags ...string) (*process.Process, error) {
	dir := filepath.Join(p.dir, strings.TrimPrefix(name, "kube-"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	spec := process.Spec{
		Name: name, Command: append([]string{p.components, name}, flags...), Dir: dir, Log: p.log(name),
	}
	if name == "istiod" {
		spec.Env = istiodEnvironment()
	}
	return process.Start(spec)
}

func (p *ControlPlane) log(name string) string {
	return filepath.Join(filepath.Dir(p.dir), "logs", name+".log")
}
