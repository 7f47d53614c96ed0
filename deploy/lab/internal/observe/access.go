// Package observe reads what the node proxies tell about the traffic: access logs, metrics, configuration dumps.
package observe

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// Access is a line of the access log.
type Access struct {
	Time        time.Time `json:"time"`
	Scope       string    `json:"scope"`
	Direction   string    `json:"direction"`
	SrcAddr     string    `json:"src.addr"`
	SrcWorkload string    `json:"src.workload"`
	SrcIdentity string    `json:"src.identity"`
	DstAddr     string    `json:"dst.addr"`
	HBONEAddr   string    `json:"dst.hbone_addr"`
	DstService  string    `json:"dst.service"`
	DstWorkload string    `json:"dst.workload"`
	DstIdentity string    `json:"dst.identity"`
	TLSVersion  string    `json:"tls.version"`
	Flags       string    `json:"response_flags"`
	CloseCause  string    `json:"close_cause"`
	Error       string    `json:"error"`
}

// ReadAccess reads the access log lines written at or after a time; other lines are left out.
func ReadAccess(path string, since time.Time) ([]Access, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("log of the proxy: %w", err)
	}
	var found []Access
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line Access
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Scope == "access" && !line.Time.Before(since) {
			found = append(found, line)
		}
	}
	return found, nil
}

// Tunnel says how a connection went: its identities if both ends of it were authenticated.
func (a Access) Tunnel() string {
	if a.SrcIdentity == "" || a.DstIdentity == "" {
		return a.Direction + " without tunnel"
	}
	return fmt.Sprintf("%s %s to %s", a.Direction, short(a.SrcIdentity), short(a.DstIdentity))
}

// short leaves the trust domain of the lab out.
func short(identity string) string {
	namespaced, found := strings.CutPrefix(identity, "spiffe://cluster.local/ns/")
	if !found {
		return identity
	}
	return strings.Replace(namespaced, "/sa/", " ", 1)
}
