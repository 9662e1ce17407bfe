package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/marquee-ads/marquee/platform/tools"
)

// nginx proxies gRPC to the bare server; nil where nginx is not installed.
func (b *bench) nginx(_ context.Context, upstream *process) (*row, error) {
	binary, err := exec.LookPath("nginx")
	if err != nil {
		fmt.Fprintln(os.Stderr, "nginx is not on PATH: its row is left out (apt-get install nginx-light)")
		return nil, nil //nolint:nilerr // no row is no failure
	}
	ports, err := freeAddresses(1)
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(b.dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, `
daemon off; master_process off; worker_processes 1;
pid %[1]s/nginx.pid; error_log stderr warn;
events { worker_connections 1024; }
http {
  access_log off;
  client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
  keepalive_requests 100000000;
  upstream echo { server %[3]s; keepalive 64; keepalive_requests 100000000; }
  server { listen %[2]s http2; location / { grpc_pass grpc://echo; } }
}`, b.dir, ports[0], upstream.address), 0o600); err != nil {
		return nil, err
	}
	p, err := b.start("nginx", nil, binary, "-c", conf, "-p", b.dir)
	if err != nil {
		return nil, err
	}
	return &row{name: "nginx", against: []string{"copyproxy, plaintext"}, what: "yardstick: grpc_pass to the bare server in plaintext, one worker, no access log", call: b.grpcCall(ports[0]), processes: []*process{p, upstream}}, nil
}

// envoy proxies gRPC to the bare server; nil where envoy is not installed.
func (b *bench) envoy(ctx context.Context, upstream *process) (*row, error) {
	binary, err := tools.Find(ctx, tools.Envoy)
	if err != nil {
		fmt.Fprintln(os.Stderr, "envoy is not there: its row is left out:", err)
		return nil, nil
	}
	ports, err := freeAddresses(1)
	if err != nil {
		return nil, err
	}
	_, listen, _ := net.SplitHostPort(ports[0])
	_, target, _ := net.SplitHostPort(upstream.address)
	conf := filepath.Join(b.dir, "envoy.yaml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, `
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: %s}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          codec_type: HTTP2
          route_config:
            virtual_hosts:
            - {name: all, domains: ["*"], routes: [{match: {prefix: "/"}, route: {cluster: echo}}]}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: echo
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: echo
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %s}}}}]}]
`, listen, target), 0o600); err != nil {
		return nil, err
	}
	p, err := b.start("envoy", nil, binary, "-c", conf, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")
	if err != nil {
		return nil, err
	}
	return &row{name: "Envoy", against: []string{"copyproxy, plaintext"}, what: "yardstick: router to the bare server in plaintext, one worker, no access log", call: b.grpcCall(ports[0]), processes: []*process{p, upstream}}, nil
}
