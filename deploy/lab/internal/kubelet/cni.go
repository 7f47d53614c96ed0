package kubelet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"corelane/lab/internal/network"
	"corelane/lab/internal/process"
)

const (
	// agentDir is where the node agent listens for the plugin.
	agentDir = "/run/istio-cni"
	// zdsSocket is where the node agent listens for the proxy.
	zdsSocket = "/run/ztunnel/ztunnel.sock"
	// pluginSocket is the name that the plugin knows.
	pluginSocket = "pluginevent.sock"
	// pluginKubeconfig is where the plugin finds the API server, in agentDir.
	pluginKubeconfig = "istio-cni-kubeconfig"
	cniVersion       = "1.0.0"
)

// selectors are those of Istio's chart: the label of the pod, else the label of its namespace.
var selectors = json.RawMessage(`[
  {"podSelector": {"matchLabels": {"istio.io/dataplane-mode": "ambient"}}},
  {"podSelector": {"matchExpressions": [{"key": "istio.io/dataplane-mode", "operator": "NotIn", "values": ["none"]}]},
   "namespaceSelector": {"matchLabels": {"istio.io/dataplane-mode": "ambient"}}}]`)

// addToNetwork calls Istio's plugin until it succeeds: it refuses while the node agent or the proxy is not there, so
// that no pod of the mesh starts uncaptured.
func (p *pod) addToNetwork(ctx context.Context) error {
	for {
		err := p.callPlugin(ctx)
		if err == nil {
			return nil
		}
		p.log.Warn("the CNI plugin refuses, trying again", "error", err)
		select {
		case <-ctx.Done():
			return err
		case <-p.ending:
			return err
		case <-time.After(restartPause):
		}
	}
}

// callPlugin calls Istio's plugin with the result of the main one, which is the lab's own.
func (p *pod) callPlugin(ctx context.Context) error {
	config, err := json.Marshal(map[string]any{
		"cniVersion": cniVersion, "name": "lab", "type": "istio-cni",
		"plugin_log_level": "warn", "cni_agent_run_dir": agentDir,
		"ambient_enabled": true, "enablement_selectors": selectors,
		"exclude_namespaces": []string{"kube-system"}, "native_nftables": true,
		"prevResult": map[string]any{
			"cniVersion": cniVersion,
			"interfaces": []map[string]any{{"name": "eth0", "sandbox": p.network.Path}},
			"ips":        []map[string]any{{"address": p.network.Address + "/24", "interface": 0}},
		},
	})
	if err != nil {
		return err
	}
	plugin := exec.CommandContext(ctx, p.kubelet.node.Plugin)
	plugin.Stdin = bytes.NewReader(config)
	var output, complaint bytes.Buffer
	plugin.Stdout, plugin.Stderr = &output, &complaint
	plugin.Env = []string{
		"PATH=" + os.Getenv("PATH"),
		"CNI_COMMAND=ADD", "CNI_IFNAME=eth0", "CNI_PATH=" + filepath.Dir(p.kubelet.node.Plugin),
		"CNI_CONTAINERID=" + string(p.object.UID), "CNI_NETNS=" + p.network.Path,
		fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s", p.object.Namespace, p.object.Name),
	}
	if err := plugin.Run(); err != nil {
		return fmt.Errorf("istio-cni: %w: %s %s", err, output.String(), strings.TrimSpace(complaint.String()))
	}
	return nil
}

// StartAgents starts what runs on the node itself: the proxy of Services and Istio's node agent.
func StartAgents(node Node) error {
	services := process.Spec{
		Name: "kube-proxy", Dir: node.Dir, Log: filepath.Join(node.Logs, node.Name+"_kube-proxy.log"),
		Command: []string{
			node.Components, "kube-proxy", "--kubeconfig=" + node.Kubeconfig, "--proxy-mode=nftables",
			"--hostname-override=" + node.Name, "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0",
			"--conntrack-tcp-timeout-close-wait=0",
			"--cluster-cidr=" + network.PodRange,
		},
	}
	if _, err := process.Start(services); err != nil {
		return err
	}
	for _, dir := range []string{agentDir, filepath.Dir(zdsSocket)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	kubeconfig, err := os.ReadFile(node.Kubeconfig)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(agentDir, pluginKubeconfig), kubeconfig, 0o600); err != nil {
		return err
	}
	_, err = process.Start(process.Spec{
		Name: "istio-cni-agent", Dir: node.Dir, Log: filepath.Join(node.Logs, node.Name+"_istio-cni.log"),
		Env: []string{
			"NODE_NAME=" + node.Name, "POD_NAMESPACE=istio-system", "POD_NAME=istio-cni-" + node.Name,
			"ALLOW_SWITCH_TO_HOST_NS=true", "AMBIENT_ENABLE_AWS_BRANCH_ENI_PROBE=false",
		},
		Command: []string{
			node.Components, "istio-cni-agent", "--kubeconfig=" + node.Kubeconfig,
			"--zds-socket=" + zdsSocket, "--plugin-socket=" + filepath.Join(agentDir, pluginSocket),
		},
	})
	return err
}
