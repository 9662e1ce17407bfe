package rest

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/services/gateway/catalog"
	"github.com/marquee-ads/marquee/services/gateway/recovery"
	"github.com/marquee-ads/marquee/services/gateway/stage"
)

// TestPanics makes what is around the stages panic, and the stages themselves.
func TestPanics(t *testing.T) {
	for name, stages := range map[string][]stage.Stage{
		"OutsideTheRecoveryStage": {panics},
		"InsideIt":                {recovery.Stage(hclog.NewNullLogger()), panics},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			door := New(Options{
				Catalog: catalog.New(catalog.Options{Log: hclog.NewNullLogger()}),
				Stages:  stage.NewChain(stages...),
				Log:     hclog.New(&hclog.LoggerOptions{Output: &log}),
			})
			w := httptest.NewRecorder()
			door.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/x", nil))
			require.Equal(t, http.StatusInternalServerError, w.Code)
			require.Contains(t, w.Body.String(), `"reason":"INTERNAL"`)
			require.NotContains(t, w.Body.String(), "index out of range")
			if name == "OutsideTheRecoveryStage" {
				require.Contains(t, log.String(), "panic_test.go", "the stack")
			}
		})
	}
}

// Half an answer must not look like a whole one.
func TestPanicAfterTheStatusLineCutsTheConnection(t *testing.T) {
	var door *Door
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/whole" {
			return
		}
		x := &exchange{door: door, w: w, r: r}
		x.start("the-request")
		_, _ = w.Write([]byte("{\"result\":1}\n"))
		_ = http.NewResponseController(w).Flush()
		x.abandon(recovery.ErrPanicked, "the-request")
	}))
	defer server.Close()
	door = New(Options{Log: hclog.NewNullLogger()})

	response, err := http.Get(server.URL)
	require.NoError(t, err)
	defer response.Body.Close()
	lines := bufio.NewReader(response.Body)
	line, err := lines.ReadString('\n')
	require.NoError(t, err)
	require.JSONEq(t, `{"result":1}`, line)
	rest, err := lines.ReadString('\n')
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "it ended as if it were complete")
	require.Empty(t, rest)

	whole, err := http.Get(server.URL + "/whole")
	require.NoError(t, err, "the server goes on")
	whole.Body.Close()
}

func panics(stage.Handler) stage.Handler {
	return func(context.Context, *stage.Call) error {
		var nothing []error
		return nothing[0]
	}
}
