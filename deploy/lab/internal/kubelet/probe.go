package kubelet

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	// probeInterval is shorter than Kubernetes can say, so that scenarios are quick.
	probeInterval = 200 * time.Millisecond
	probeTimeout  = 2 * time.Second
)

// probe reports whether the pod is ready, until ctx ends. Like the kubelet, it asks from the node.
func (p *pod) probe(ctx context.Context) {
	ready := false
	// The address is reported with the first state.
	p.status.setReady(ready)
	for {
		if now := p.isReady(ctx); now != ready && ctx.Err() == nil {
			ready = now
			p.status.setReady(ready)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(probeInterval):
		}
	}
}

func (p *pod) isReady(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	for index := range p.object.Spec.Containers {
		probe := p.object.Spec.Containers[index].ReadinessProbe
		switch {
		case probe == nil:
		case probe.HTTPGet != nil:
			url := fmt.Sprintf("http://%s%s", p.target(probe.HTTPGet.Port.IntValue()), probe.HTTPGet.Path)
			if !answers(ctx, url) {
				return false
			}
		case probe.TCPSocket != nil:
			connection, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.target(probe.TCPSocket.Port.IntValue()))
			if err != nil {
				return false
			}
			// Only whether it could be opened counts.
			_ = connection.Close()
		}
	}
	return true
}

func (p *pod) target(port int) string {
	return net.JoinHostPort(p.network.Address, strconv.Itoa(port))
}

// prober makes a connection for each probe, so that none outlives a change of the pod's redirection.
var prober = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func answers(ctx context.Context, url string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	response, err := prober.Do(request)
	if err != nil {
		return false
	}
	return response.Body.Close() == nil && response.StatusCode == http.StatusOK
}

// environment is the variables of a container.
func (p *pod) environment(container *corev1.Container) []string {
	// What every pod of a cluster finds.
	variables := []string{"KUBERNETES_SERVICE_HOST=10.96.0.1", "KUBERNETES_SERVICE_PORT=443"}
	for _, variable := range container.Env {
		value := variable.Value
		if variable.ValueFrom != nil && variable.ValueFrom.FieldRef != nil {
			value = p.field(variable.ValueFrom.FieldRef.FieldPath)
		}
		variables = append(variables, variable.Name+"="+value)
	}
	return variables
}

// field is the value of a downward reference; one that the lab does not know is empty.
func (p *pod) field(path string) string {
	switch path {
	case "metadata.name":
		return p.object.Name
	case "metadata.namespace":
		return p.object.Namespace
	case "metadata.uid":
		return string(p.object.UID)
	case "spec.nodeName":
		return p.object.Spec.NodeName
	case "spec.serviceAccountName":
		return p.object.Spec.ServiceAccountName
	case "status.podIP":
		return p.network.Address
	}
	return ""
}
