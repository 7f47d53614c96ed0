package observe

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestAccessLinesSinceATimeAreRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	text := `{"level":"info","time":"2026-01-01T00:00:00Z","scope":"access","direction":"inbound"}
not JSON
{"level":"info","time":"2026-01-01T00:00:02Z","scope":"xds","message":"connected"}
{"level":"info","time":"2026-01-01T00:00:02Z","scope":"access","direction":"outbound",` +
		`"src.identity":"spiffe://cluster.local/ns/shop/sa/client","dst.identity":"spiffe://cluster.local/ns/shop/sa/echo"}
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	lines, err := ReadAccess(path, time.Date(2026, 1, 1, 0, 0, 1, 0, time.UTC))
	if err != nil || len(lines) != 1 {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
	if got := lines[0].Tunnel(); got != "outbound shop client to shop echo" {
		t.Errorf("tunnel: %q", got)
	}
}

func TestAConnectionWithOneIdentityIsNoTunnel(t *testing.T) {
	line := Access{Direction: "inbound", DstIdentity: "spiffe://cluster.local/ns/shop/sa/echo"}
	if got := line.Tunnel(); got != "inbound without tunnel" {
		t.Errorf("tunnel: %q", got)
	}
}

func TestAnIdentityOfAnotherFormIsShownWhole(t *testing.T) {
	line := Access{Direction: "inbound", SrcIdentity: "x", DstIdentity: "spiffe://other/ns/a/sa/b"}
	if got := line.Tunnel(); got != "inbound x to spiffe://other/ns/a/sa/b" {
		t.Errorf("tunnel: %q", got)
	}
}

func TestSamplesWithAllLabelsAddUp(t *testing.T) {
	page := `# TYPE istio_tcp_connections_opened counter
istio_tcp_connections_opened_total{reporter="source",source_principal="a"} 3
istio_tcp_connections_opened_total{reporter="source",source_principal="b"} 4
istio_tcp_connections_opened_total{reporter="destination",source_principal="a"} 5
istio_tcp_connections_closed_total{reporter="source",source_principal="a"} 6
`
	if got := Metric(page, "istio_tcp_connections_opened_total", `reporter="source"`); got != 7 {
		t.Errorf("sum: %v", got)
	}
}
