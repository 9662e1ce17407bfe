package problem_test

import (
	"encoding/json"
	"errors"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/fault/problem"
)

func TestEveryCodeHasItsStatusAndTitle(t *testing.T) {
	for _, code := range fault.Codes() {
		if code == fault.OK {
			continue
		}
		t.Run(code.String(), func(t *testing.T) {
			w := httptest.NewRecorder()
			problem.Write(w, grpcfault.ToStatus(fault.New(code, "SOME_REASON", "what happened"), "id-1"), "other")
			require.Equal(t, code.HTTPStatus(), w.Code)
			require.GreaterOrEqual(t, w.Code, 400)
			require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
			var got map[string]any
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &got))
			require.Equal(t, map[string]any{
				"type": "urn:marquee:error:SOME_REASON", "title": code.Title(), "status": float64(code.HTTPStatus()),
				"detail": "what happened", "code": code.String(), "reason": "SOME_REASON", "request_id": "id-1",
			}, got)
			require.Equal(t, code == fault.Unauthenticated, w.Header().Get("WWW-Authenticate") == "Bearer")
		})
	}
}

func TestWrite(t *testing.T) {
	t.Run("FieldsMetadataAndRetry", func(t *testing.T) {
		f := fault.New(fault.InvalidArgument, "VALIDATION_FAILED", "not valid").
			WithField("lines[2].slot", "int32.gte", "must be at least 0").
			WithRetryAfter(1100 * time.Millisecond)
		f.Meta = map[string]string{"k": "v"}
		w := httptest.NewRecorder()
		problem.Write(w, grpcfault.ToStatus(f, ""), "mine")
		require.Equal(t, "2", w.Header().Get("Retry-After"), "rounded up")
		require.JSONEq(t, `{"type":"urn:marquee:error:VALIDATION_FAILED","title":"The request is not valid","status":400,
			"detail":"not valid","code":"INVALID_ARGUMENT","reason":"VALIDATION_FAILED","request_id":"mine",
			"errors":[{"field":"lines[2].slot","description":"must be at least 0","rule":"int32.gte"}],
			"metadata":{"k":"v"}}`, w.Body.String())
	})
	t.Run("StatusOfATransport", func(t *testing.T) {
		w := httptest.NewRecorder()
		problem.Write(w, status.New(codes.Unavailable, "connection refused"), "mine")
		require.Equal(t, 503, w.Code)
		require.Contains(t, w.Body.String(), `"reason":"UNAVAILABLE"`)
		require.Empty(t, w.Header().Get("Retry-After"))
	})
	t.Run("OKIsNoProblem", func(t *testing.T) {
		w := httptest.NewRecorder()
		problem.Write(w, status.New(codes.OK, ""), "")
		require.Equal(t, 500, w.Code)
	})
	t.Run("CauseStaysInside", func(t *testing.T) {
		w := httptest.NewRecorder()
		problem.Write(w, grpcfault.ToStatus(errors.New("password is hunter2"), "id"), "")
		require.Equal(t, 500, w.Code)
		require.NotContains(t, w.Body.String(), "hunter2")
	})
	t.Run("RefusedToken", func(t *testing.T) {
		w := httptest.NewRecorder()
		problem.Write(w, grpcfault.ToStatus(fault.New(fault.Unauthenticated, "TOKEN_EXPIRED", "expired"), ""), "")
		require.Equal(t, `Bearer error="invalid_token"`, w.Header().Get("WWW-Authenticate"))
	})
}
