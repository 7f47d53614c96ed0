// Package manifests holds the objects that the lab applies.
package manifests

import (
	"bytes"
	"embed"
	"fmt"
	"text/template"
)

//go:embed *.yaml
var files embed.FS

// Read gives a manifest as it stands.
func Read(name string) ([]byte, error) { return files.ReadFile(name) }

// Fill gives a manifest with its template carried out over data.
func Fill(name string, data any) ([]byte, error) {
	parsed, err := template.New(name).Option("missingkey=error").ParseFS(files, name)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	if err := parsed.Execute(&text, data); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", name, err)
	}
	return text.Bytes(), nil
}
