// Package cluster is the lab's view of the API: apply YAML, wait for conditions, delete.
package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	fieldManager = "lab"
	// poll is the interval of waiting.
	poll = 50 * time.Millisecond
	// requestRate and requestBurst are a limit for runaways, not for the lab's work.
	requestRate, requestBurst = 200, 400
)

// Client talks to the API server.
type Client struct {
	Kube    kubernetes.Interface
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

// New reads a kubeconfig.
func New(kubeconfig string) (*Client, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	config.QPS, config.Burst = requestRate, requestBurst
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	dynamicClient, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(kube.Discovery()))
	return &Client{Kube: kube, dynamic: dynamicClient, mapper: mapper}, nil
}

// Apply applies every object of a YAML stream, as kubectl apply --server-side does.
func (c *Client) Apply(ctx context.Context, text []byte) error {
	objects, err := parse(text)
	if err != nil {
		return err
	}
	for _, object := range objects {
		resource, err := c.resource(object)
		if err != nil {
			return err
		}
		body, err := object.MarshalJSON()
		if err != nil {
			return err
		}
		force := true
		options := metav1.PatchOptions{FieldManager: fieldManager, Force: &force}
		_, err = resource.Patch(ctx, object.GetName(), types.ApplyPatchType, body, options)
		if err != nil {
			return fmt.Errorf("apply %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	return nil
}

// Delete deletes every object of a YAML stream and waits until it is gone.
func (c *Client) Delete(ctx context.Context, text []byte) error {
	objects, err := parse(text)
	if err != nil {
		return err
	}
	for _, object := range objects {
		resource, err := c.resource(object)
		if err != nil {
			return err
		}
		err = resource.Delete(ctx, object.GetName(), metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	for _, object := range objects {
		resource, err := c.resource(object)
		if err != nil {
			return err
		}
		err = Until(ctx, "deletion of "+object.GetKind()+" "+object.GetName(), func() (bool, error) {
			_, err := resource.Get(ctx, object.GetName(), metav1.GetOptions{})
			return apierrors.IsNotFound(err), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Label sets a label of a namespace, or removes it when value is empty.
func (c *Client) Label(ctx context.Context, namespace, key, value string) error {
	text := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, key, value)
	if value == "" {
		text = fmt.Sprintf(`{"metadata":{"labels":{%q:null}}}`, key)
	}
	_, err := c.Kube.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, []byte(text), metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("label namespace %s: %w", namespace, err)
	}
	return nil
}

// Get reads one object.
func (c *Client) Get(ctx context.Context, version, kind, namespace, name string) (*unstructured.Unstructured, error) {
	wanted := &unstructured.Unstructured{}
	wanted.SetAPIVersion(version)
	wanted.SetKind(kind)
	wanted.SetNamespace(namespace)
	wanted.SetName(name)
	resource, err := c.resource(wanted)
	if err != nil {
		return nil, err
	}
	return resource.Get(ctx, name, metav1.GetOptions{})
}

// resource finds where an object belongs. A kind that is not known yet is looked up once more.
func (c *Client) resource(object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := object.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) {
		c.mapper.Reset()
		mapping, err = c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", kind, object.GetName(), err)
	}
	resource := c.dynamic.Resource(mapping.Resource)
	if mapping.Scope.Name() != meta.RESTScopeNameNamespace {
		return resource, nil
	}
	namespace := object.GetNamespace()
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	return resource.Namespace(namespace), nil
}

func parse(text []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("YAML, object %d: %w", len(objects)+1, err)
		}
		if len(object.Object) > 0 {
			objects = append(objects, object)
		}
	}
}

// Until asks again and again until the answer is yes, an error, or the end of ctx; what is named in that error.
func Until(ctx context.Context, what string, done func() (bool, error)) error {
	for {
		ok, err := done()
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s did not happen in time: %w", what, ctx.Err())
		case <-time.After(poll):
		}
	}
}
