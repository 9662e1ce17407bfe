package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/fault/problem"
)

const (
	// requestTimeout is that of the service for callers without a deadline.
	requestTimeout = 15 * time.Second
	maxBodyBytes   = 64 << 10
)

var errMalformed = fault.New(fault.InvalidArgument, "JSON_MALFORMED", "the body is not the JSON of this request")

// The messages, with the names that they have at the gateway.
type (
	accountMessage struct {
		AccountID  string    `json:"accountId"`
		Name       string    `json:"name"`
		CreateTime time.Time `json:"createTime"`
	}
	accountAnswer struct {
		Account accountMessage `json:"account"`
	}
	signUpRequest struct {
		RequestID string `json:"requestId"`
		Name      string `json:"name"`
		Password  string `json:"password"`
	}
	logInRequest struct {
		Name     string `json:"name"`
		Password string `json:"password"`
	}
	logInAnswer struct {
		Account           accountMessage `json:"account"`
		AccessToken       string         `json:"accessToken"`
		ExpireTime        time.Time      `json:"expireTime"`
		RefreshToken      string         `json:"refreshToken"`
		RefreshExpireTime time.Time      `json:"refreshExpireTime"`
	}
)

// newHandler serves the paths that these methods have at the gateway.
func newHandler(a *accounts) http.Handler {
	verifier := auth.NewVerifier(auth.Issuer, audience, a.key, nil)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/accounts", answering(func(ctx context.Context, r *http.Request) (any, error) {
		var request signUpRequest
		if err := decode(r, &request); err != nil {
			return nil, err
		}
		created, err := a.signUp(ctx, request, address(r))
		return accountAnswer{created}, err
	}))
	mux.HandleFunc("POST /v1/sessions", answering(func(ctx context.Context, r *http.Request) (any, error) {
		var request logInRequest
		if err := decode(r, &request); err != nil {
			return nil, err
		}
		return a.logIn(ctx, request, address(r))
	}))
	mux.HandleFunc("GET /v1/accounts/{id}", answering(func(ctx context.Context, r *http.Request) (any, error) {
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		caller, err := verifier.Verify(ctx, token)
		if err != nil {
			return nil, err
		}
		found, err := a.read(ctx, caller, r.PathValue("id"))
		return accountAnswer{found}, err
	}))
	return mux
}

// answering writes what handle returns as JSON, or as problem details.
func answering(handle func(context.Context, *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
		answer, err := handle(ctx, r)
		if err != nil {
			problem.Write(w, grpcfault.ToStatus(err, ""), "")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer) // the client may be gone
	}
}

func decode(r *http.Request, into any) error {
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return errMalformed.Because(err)
	}
	return nil
}

// address is the client's.
func address(r *http.Request) string {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return from.Addr().Unmap().WithZone("").String()
}
