package observe

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Dump is the parts of a proxy's /config_dump that the lab looks at.
type Dump struct {
	Workloads []struct {
		Name     string `json:"name"`
		UID      string `json:"uid"`
		Protocol string `json:"protocol"`
		Status   string `json:"status"`
	} `json:"workloads"`
	Services []struct {
		Hostname  string         `json:"hostname"`
		Endpoints map[string]any `json:"endpoints"`
	} `json:"services"`
	Policies []struct {
		Name string `json:"name"`
	} `json:"policies"`
	Certificates []struct {
		Identity  string `json:"identity"`
		State     string `json:"state"`
		CertChain []struct {
			SerialNumber string `json:"serialNumber"`
		} `json:"certChain"`
	} `json:"certificates"`
}

// ParseDump reads a configuration dump.
func ParseDump(text string) (*Dump, error) {
	var dump Dump
	if err := json.Unmarshal([]byte(text), &dump); err != nil {
		return nil, fmt.Errorf("/config_dump: %w", err)
	}
	return &dump, nil
}

// Serial is the serial number of an identity's leaf, or "".
func (d *Dump) Serial(identity string) string {
	for _, certificate := range d.Certificates {
		if certificate.Identity == identity && len(certificate.CertChain) > 0 {
			return certificate.CertChain[0].SerialNumber
		}
	}
	return ""
}

// Metric adds up the samples of a metric whose labels contain all of the given texts.
func Metric(page, name string, labels ...string) float64 {
	sum := 0.0
	for line := range strings.Lines(page) {
		series, value, found := strings.Cut(strings.TrimSpace(line), "} ")
		metric, rest, labelled := strings.Cut(series, "{")
		if !found || !labelled || metric != name || !containsAll(rest, labels) {
			continue
		}
		if number, err := strconv.ParseFloat(strings.Fields(value)[0], 64); err == nil {
			sum += number
		}
	}
	return sum
}

func containsAll(text string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}
