package kubelet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
)

// execSocket is the name of the socket, in the node's folder, where commands to run are taken.
const execSocket = "exec.sock"

// Order is a command to run in a pod, or on the node itself if Pod is empty.
type Order struct {
	Namespace string   `json:"namespace"`
	Pod       string   `json:"pod"`
	Command   []string `json:"command"`
}

// Outcome is what a command said.
type Outcome struct {
	Code   int    `json:"code"`
	Stdout string `json:"stdout"`
	Stderr string `json:"stderr"`
}

// ServeExec takes orders until the process ends.
func (k *Kubelet) ServeExec() error {
	listener, err := net.Listen("unix", filepath.Join(k.node.Dir, execSocket))
	if err != nil {
		return err
	}
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var order Order
		if err := json.NewDecoder(r.Body).Decode(&order); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		outcome, err := k.execute(r.Context(), order)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		// Whoever asked may have gone.
		_ = json.NewEncoder(w).Encode(outcome)
	}))
}

func (k *Kubelet) execute(ctx context.Context, order Order) (Outcome, error) {
	var output, complaint bytes.Buffer
	command := exec.CommandContext(ctx, order.Command[0], order.Command[1:]...)
	command.Stdout, command.Stderr = &output, &complaint
	command.Env = []string{"PATH=" + os.Getenv("PATH")}
	err := k.runIn(order, command)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return Outcome{}, err
	}
	return Outcome{Code: command.ProcessState.ExitCode(), Stdout: output.String(), Stderr: complaint.String()}, nil
}

func (k *Kubelet) runIn(order Order, command *exec.Cmd) error {
	if order.Pod == "" {
		return command.Run()
	}
	found := k.find(order.Namespace, order.Pod)
	if found == nil || found.network == nil {
		return fmt.Errorf("no pod %s/%s on %s", order.Namespace, order.Pod, k.node.Name)
	}
	command.Dir = found.dir
	return errors.Join(found.network.Within(command.Start), waitStarted(command))
}

func waitStarted(command *exec.Cmd) error {
	if command.Process == nil {
		return nil
	}
	return command.Wait()
}

// Exec runs a command on the node whose folder is dir.
func Exec(ctx context.Context, dir string, order Order) (Outcome, error) {
	body, err := json.Marshal(order)
	if err != nil {
		return Outcome{}, err
	}
	socket := filepath.Join(dir, execSocket)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://node/", bytes.NewReader(body))
	if err != nil {
		return Outcome{}, err
	}
	response, err := client.Do(request)
	if err != nil {
		return Outcome{}, fmt.Errorf("exec %v in %s: %w", order.Command, order.Pod, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		var reason bytes.Buffer
		_, _ = reason.ReadFrom(response.Body)
		return Outcome{}, fmt.Errorf("exec %v in %s: %s", order.Command, order.Pod, reason.String())
	}
	var outcome Outcome
	return outcome, json.NewDecoder(response.Body).Decode(&outcome)
}
