package kubelet

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// apiAccess starts the name of the volume that the API server adds to pods; the lab's programs do not use it.
const apiAccess = "kube-api-access-"

// mountVolumes lays the files of the pod's volumes under its folder, which is its containers' working directory: a
// program finds the mount path /var/x at ./var/x. Host paths need no mount, the node has them.
func (p *pod) mountVolumes(ctx context.Context) error {
	for _, volume := range p.object.Spec.Volumes {
		files, err := p.files(ctx, volume)
		if err != nil {
			return fmt.Errorf("volume %s: %w", volume.Name, err)
		}
		for _, container := range p.object.Spec.Containers {
			for _, mount := range container.VolumeMounts {
				if mount.Name == volume.Name {
					if err := p.write(mount.MountPath, files); err != nil {
						return fmt.Errorf("volume %s: %w", volume.Name, err)
					}
				}
			}
		}
	}
	return nil
}

func (p *pod) write(mountPath string, files map[string]string) error {
	dir := filepath.Join(p.dir, mountPath)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (p *pod) files(ctx context.Context, volume corev1.Volume) (map[string]string, error) {
	switch {
	case strings.HasPrefix(volume.Name, apiAccess):
		return nil, nil
	case volume.ConfigMap != nil:
		return p.configMap(ctx, volume.ConfigMap.Name)
	case volume.Projected != nil:
		return p.projected(ctx, volume.Projected.Sources)
	case volume.DownwardAPI != nil:
		return p.downward(volume.DownwardAPI.Items)
	case volume.HostPath != nil:
		return nil, os.MkdirAll(volume.HostPath.Path, 0o755)
	}
	return nil, nil
}

// configMap waits for the object, as the kubelet does.
func (p *pod) configMap(ctx context.Context, name string) (map[string]string, error) {
	for {
		object, err := p.kubelet.client.CoreV1().ConfigMaps(p.object.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			return object.Data, nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("ConfigMap %s is not there: %w", name, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (p *pod) projected(ctx context.Context, sources []corev1.VolumeProjection) (map[string]string, error) {
	files := map[string]string{}
	for _, source := range sources {
		if source.ServiceAccountToken == nil {
			return nil, fmt.Errorf("only serviceAccountToken can be projected")
		}
		token, err := p.token(ctx, source.ServiceAccountToken)
		if err != nil {
			return nil, err
		}
		files[source.ServiceAccountToken.Path] = token
	}
	return files, nil
}

// downward gives files about the pod itself, as the kubelet writes them: labels a line each, in order.
func (p *pod) downward(items []corev1.DownwardAPIVolumeFile) (map[string]string, error) {
	files := map[string]string{}
	for _, item := range items {
		if item.FieldRef == nil || item.FieldRef.FieldPath != "metadata.labels" {
			return nil, fmt.Errorf("only metadata.labels can be had from the downward API")
		}
		var lines strings.Builder
		for _, name := range slices.Sorted(maps.Keys(p.object.Labels)) {
			fmt.Fprintf(&lines, "%s=%q\n", name, p.object.Labels[name])
		}
		files[item.Path] = lines.String()
	}
	return files, nil
}

// token asks for a token of the pod's account that is bound to the pod.
func (p *pod) token(ctx context.Context, wanted *corev1.ServiceAccountTokenProjection) (string, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences:         []string{wanted.Audience},
		ExpirationSeconds: wanted.ExpirationSeconds,
		BoundObjectRef: &authenticationv1.BoundObjectReference{
			APIVersion: "v1", Kind: "Pod", Name: p.object.Name, UID: p.object.UID,
		},
	}}
	accounts := p.kubelet.client.CoreV1().ServiceAccounts(p.object.Namespace)
	answer, err := accounts.CreateToken(ctx, p.object.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("token of %s: %w", p.object.Spec.ServiceAccountName, err)
	}
	return answer.Status.Token, nil
}
