package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"corelane/lab/internal/network"
	"corelane/lab/internal/process"
	"corelane/lab/internal/sandbox"
)

const (
	// requestTimeout bounds one call of the API.
	requestTimeout = 10 * time.Second
	// setupTimeout bounds the network setup of a pod, plugin included.
	setupTimeout = 30 * time.Second
	// restartPause is between the end of a container and its next start.
	restartPause = time.Second
)

// pod is one pod on the node, from its namespace to its end.
type pod struct {
	kubelet *Kubelet
	object  *corev1.Pod
	log     *slog.Logger
	dir     string
	network *network.Pod

	stopOnce sync.Once
	// stopping carries the grace once the pod is to end.
	stopping chan time.Duration
	// ending is closed as soon as the pod is to end.
	ending chan struct{}

	status statusWriter
}

func newPod(kubelet *Kubelet, object *corev1.Pod) *pod {
	made := &pod{
		kubelet: kubelet, object: object, log: kubelet.logger(object),
		dir:      filepath.Join(kubelet.node.Dir, string(object.UID)),
		stopping: make(chan time.Duration, 1), ending: make(chan struct{}),
	}
	made.status = statusWriter{client: kubelet.client, pod: object}
	return made
}

// stop lets run end the pod; only the first call counts.
func (p *pod) stop(grace time.Duration) {
	p.stopOnce.Do(func() {
		p.stopping <- grace
		close(p.ending)
	})
}

// run is the whole life of the pod.
func (p *pod) run(ctx context.Context) {
	index := p.kubelet.takeIndex(p.object)
	defer p.kubelet.freeIndex(index)
	defer p.kubelet.finish(p.object)
	if err := p.setUp(ctx, index); err != nil {
		p.log.Error("the pod's network cannot be set up", "error", err)
		p.status.fail(err)
		<-p.stopping
		p.tearDown()
		return
	}
	life, end := context.WithCancel(ctx)
	defer end()
	var containers sync.WaitGroup
	grace := make(chan struct{})
	var allowed time.Duration
	for index := range p.object.Spec.Containers {
		containers.Go(func() { p.runContainer(&p.object.Spec.Containers[index], grace, &allowed) })
	}
	p.status.running(p.network.Address, p.kubelet.node.Number)
	go p.probe(life)
	select {
	case allowed = <-p.stopping:
	case <-ctx.Done():
	}
	close(grace)
	// Probes go on meanwhile: a program may tell by them that it is about to end.
	containers.Wait()
	end()
	p.tearDown()
}

func (p *pod) setUp(ctx context.Context, index int) error {
	if index < 0 {
		return errors.New("the node has no address left")
	}
	address := network.PodAddress(p.kubelet.node.Number, index)
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	var err error
	p.network, err = network.MakePod(string(p.object.UID), address, p.kubelet.node.Number, index)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	if err := p.addToNetwork(ctx); err != nil {
		return err
	}
	return p.mountVolumes(ctx)
}

func (p *pod) tearDown() {
	if p.network != nil {
		if err := p.network.Remove(); err != nil {
			p.log.Error("the pod's namespace stays", "error", err)
		}
	}
	if err := os.RemoveAll(p.dir); err != nil {
		p.log.Error("the pod's folder stays", "error", err)
	}
}

// runContainer keeps a container running until stopping is closed; then it may take allowed to end.
func (p *pod) runContainer(container *corev1.Container, stopping <-chan struct{}, allowed *time.Duration) {
	for {
		started, err := p.startContainer(container)
		if err != nil {
			p.log.Error("the container does not start", "container", container.Name, "error", err)
			p.status.fail(err)
			<-stopping
			return
		}
		select {
		case <-stopping:
			started.Stop(*allowed)
			return
		case <-started.Done():
		}
		p.log.Warn("the container ended", "container", container.Name, "code", started.ExitCode())
		if p.object.Spec.RestartPolicy == corev1.RestartPolicyNever {
			p.status.ended(started.ExitCode())
			<-stopping
			return
		}
		p.status.setReady(false)
		select {
		case <-stopping:
			return
		case <-time.After(restartPause):
		}
	}
}

func (p *pod) startContainer(container *corev1.Container) (*process.Process, error) {
	if len(container.Command) == 0 {
		return nil, fmt.Errorf("container %s: the lab needs `command`, it knows no images", container.Name)
	}
	group, err := sandbox.Cgroup(p.kubelet.node.Run, fmt.Sprintf("kubepods/pod%s/%s", p.object.UID, container.Name))
	if err != nil {
		return nil, err
	}
	defer group.Close()
	var started *process.Process
	err = p.network.Within(func() error {
		started, err = process.Start(process.Spec{
			Name:    container.Name,
			Command: append(append([]string{}, container.Command...), container.Args...),
			Env:     p.environment(container),
			Dir:     p.dir,
			Log:     LogFile(p.kubelet.node.Logs, p.object.Namespace, p.object.Name),
			Cgroup:  int(group.Fd()),
		})
		return err
	})
	return started, err
}

// LogFile is where the output of a pod's containers goes.
func LogFile(dir, namespace, name string) string {
	return filepath.Join(dir, namespace+"_"+name+".log")
}
