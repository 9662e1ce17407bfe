package service_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/service"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

func TestLogLevel(t *testing.T) {
	r := start(t, plaintext(), service.GRPCOptions{Keys: auth.NoKeys{}}, echo(&stub{}))
	call := func() {
		_, err := r.client().Echo(callCtx(t), &echov1.EchoRequest{})
		require.NoError(t, err)
	}
	calls := func() int { return len(r.logs.lines(t, "call:", "Echo", "code=OK")) }
	call()
	require.Zero(t, calls())
	code, body := r.do(http.MethodPut, "/log-level", "debug\n")
	require.Equal(t, 200, code)
	require.Equal(t, "debug\n", body)
	_, body = r.get("/log-level")
	require.Equal(t, "debug\n", body)
	call()
	require.Equal(t, 1, calls(), "the loggers of all parts follow")
	_, _ = r.do(http.MethodPut, "/log-level", "warn")
	call()
	require.Equal(t, 1, calls())

	code, body = r.do(http.MethodPut, "/log-level", "loud")
	require.Equal(t, 400, code)
	require.Equal(t, "\"loud\" is not a level; send trace, debug, info, warn or error\n", body)
	code, _ = r.do(http.MethodPut, "/log-level", strings.Repeat("x", 5000))
	require.Equal(t, 413, code)
	code, _ = r.do(http.MethodPost, "/log-level", "debug")
	require.Equal(t, 405, code)
}

func TestVersion(t *testing.T) {
	r := start(t, plaintext(), service.GRPCOptions{}, nothing)
	_, body := r.get("/version")
	var got struct{ Service, Instance, Version, Mode string }
	require.NoError(t, json.Unmarshal([]byte(body), &got))
	require.Equal(t, "echo", got.Service)
	require.Equal(t, r.svc.InstanceID(), got.Instance)
	require.Regexp(t, `^[0-9a-f]{12}$`, got.Version)
	require.Equal(t, service.Version(), got.Version)
}

func TestPprof(t *testing.T) {
	r := start(t, plaintext(), service.GRPCOptions{}, nothing)
	code, body := r.get("/debug/pprof/goroutine?debug=1")
	require.Equal(t, 200, code)
	require.Contains(t, body, "goroutine profile")
}

func TestUnknownPath(t *testing.T) {
	r := start(t, plaintext(), service.GRPCOptions{}, nothing)
	code, _ := r.get("/nothing")
	require.Equal(t, 404, code)
}

// Profiles show what is in memory, so production does not serve them unasked.
func TestPprofInProduction(t *testing.T) {
	cfg := plaintext()
	cfg.Mode, cfg.Environment, cfg.Mesh, cfg.Register = service.Production, "production-eu", service.MeshSidecar, "never"
	code, _ := start(t, cfg, service.GRPCOptions{}, nothing).get("/debug/pprof/")
	require.Equal(t, 404, code)
	cfg.AdminPprof = true
	r := start(t, cfg, service.GRPCOptions{}, nothing)
	code, _ = r.get("/debug/pprof/")
	require.Equal(t, 200, code)
	for _, line := range strings.Split(strings.TrimSpace(r.logs.text(t)), "\n") {
		require.True(t, json.Valid([]byte(line)), "production logs are JSON: %s", line)
	}
}
