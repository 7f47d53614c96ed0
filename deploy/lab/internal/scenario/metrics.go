package scenario

import "corelane/lab/internal/observe"

// connections counts opened connections on a metrics page by reporter, security and a part of the source's identity.
func connections(page, reporter, security, source string) float64 {
	return observe.Metric(page, "istio_tcp_connections_opened_total",
		`reporter="`+reporter+`"`, `connection_security_policy="`+security+`"`, source)
}
