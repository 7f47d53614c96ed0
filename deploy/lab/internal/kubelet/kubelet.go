// Package kubelet stands in for the kubelet, the container runtime and the main CNI plugin of a node: it gives each pod
// bound to the node a network namespace, runs its containers' commands in it and reports its state. Images are not
// looked at: a command is a program on PATH.
package kubelet

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"corelane/lab/internal/network"
)

// AddressAnnotation asks for an address by its index on the node, from 0.
const AddressAnnotation = "lab/address-index"

// Node says what a kubelet needs to know.
type Node struct {
	// Run is the name of the run; cgroups carry it.
	Run string `json:"run"`
	// Name is the node's in the API.
	Name string `json:"name"`
	// Number counts nodes from 1, of Nodes.
	Number int `json:"number"`
	Nodes  int `json:"nodes"`
	// Dir is the node's own folder for pods; Logs is where their output goes.
	Dir  string `json:"dir"`
	Logs string `json:"logs"`
	// Kubeconfig and Components are the control plane's.
	Kubeconfig string `json:"kubeconfig"`
	Components string `json:"components"`
	// Plugin is the binary of Istio's CNI plugin.
	Plugin string `json:"plugin"`
}

// Kubelet runs the pods of one node.
type Kubelet struct {
	node   Node
	client kubernetes.Interface
	mutex  sync.Mutex
	pods   map[types.UID]*pod
	// used are the indices of addresses that are taken; last is the one given out last.
	used map[int]bool
	last int
}

// New makes a kubelet; Run starts it.
func New(node Node, client kubernetes.Interface) *Kubelet {
	return &Kubelet{node: node, client: client, pods: map[types.UID]*pod{}, used: map[int]bool{}, last: -1}
}

// Run follows the pods bound to the node until ctx ends.
func (k *Kubelet) Run(ctx context.Context) error {
	if err := k.register(ctx); err != nil {
		return err
	}
	ours := fields.OneTermEqualSelector("spec.nodeName", k.node.Name).String()
	factory := informers.NewSharedInformerFactoryWithOptions(k.client, 0,
		informers.WithTweakListOptions(func(options *metav1.ListOptions) { options.FieldSelector = ours }))
	informer := factory.Core().V1().Pods().Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { k.see(ctx, object.(*corev1.Pod)) },
		UpdateFunc: func(_, object any) { k.see(ctx, object.(*corev1.Pod)) },
		DeleteFunc: k.forget,
	})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	<-ctx.Done()
	return nil
}

// register makes the Node object.
func (k *Kubelet) register(ctx context.Context) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: k.node.Name, Labels: map[string]string{
		corev1.LabelHostname: k.node.Name, corev1.LabelOSStable: "linux",
	}}}
	made, err := k.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("register node %s: %w", k.node.Name, err)
	}
	// kube-proxy waits for the address.
	address := network.NodeAddress(k.node.Number)
	made.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}
	made.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	if _, err := k.client.CoreV1().Nodes().UpdateStatus(ctx, made, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("status of node %s: %w", k.node.Name, err)
	}
	return nil
}

// see starts a pod that is new, or ends one that is to be deleted. Both go on beside the watch.
func (k *Kubelet) see(ctx context.Context, object *corev1.Pod) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	known := k.pods[object.UID]
	if known == nil {
		if object.DeletionTimestamp != nil {
			go k.finish(object)
			return
		}
		known = newPod(k, object)
		k.pods[object.UID] = known
		go known.run(ctx)
	}
	if object.DeletionTimestamp != nil {
		grace := time.Duration(0)
		if object.DeletionGracePeriodSeconds != nil {
			grace = time.Duration(*object.DeletionGracePeriodSeconds) * time.Second
		}
		known.stop(grace)
	}
}

// forget ends a pod whose object went away without notice.
func (k *Kubelet) forget(object any) {
	if unknown, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = unknown.Obj
	}
	k.mutex.Lock()
	defer k.mutex.Unlock()
	if known := k.pods[object.(*corev1.Pod).UID]; known != nil {
		known.stop(0)
	}
}

// finish removes the object of a pod that has ended.
func (k *Kubelet) finish(object *corev1.Pod) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	options := metav1.NewDeleteOptions(0)
	options.Preconditions = metav1.NewUIDPreconditions(string(object.UID))
	// It may be gone already.
	_ = k.client.CoreV1().Pods(object.Namespace).Delete(ctx, object.Name, *options)
	k.mutex.Lock()
	defer k.mutex.Unlock()
	delete(k.pods, object.UID)
}

// takeIndex reserves the index of an address that was not in use for longest, as the usual address managers do, or the
// one that the pod asks for; -1 if all are taken.
func (k *Kubelet) takeIndex(object *corev1.Pod) int {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	wanted, err := strconv.Atoi(object.Annotations[AddressAnnotation])
	if err == nil && 0 <= wanted && wanted < network.PodsMax && !k.used[wanted] {
		k.used[wanted] = true
		return wanted
	}
	for step := range network.PodsMax {
		index := (k.last + 1 + step) % network.PodsMax
		if !k.used[index] {
			k.used[index] = true
			k.last = index
			return index
		}
	}
	return -1
}

func (k *Kubelet) freeIndex(index int) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	delete(k.used, index)
}

// find looks a pod up by name.
func (k *Kubelet) find(namespace, name string) *pod {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	for _, known := range k.pods {
		if known.object.Namespace == namespace && known.object.Name == name {
			return known
		}
	}
	return nil
}

func (k *Kubelet) logger(object *corev1.Pod) *slog.Logger {
	return slog.With("node", k.node.Name, "pod", object.Namespace+"/"+object.Name)
}
