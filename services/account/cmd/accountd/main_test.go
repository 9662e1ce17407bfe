package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/platform/service"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

const testSecret = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

// databaseFlags say where a test's Postgres is.
func databaseFlags(pg *pgtest.Server, t *testing.T) []string {
	url := pg.Database(t)
	name, _, _ := strings.Cut(strings.TrimPrefix(url, "postgres:///"), "?")
	return []string{"--database-host", pg.SocketDir(t), "--database-name", name, "--database-user", "test"}
}

// instance is a running accountd.
type instance struct {
	accountv1.AccountServiceClient
	addresses service.Addresses
}

// starting is one that does not listen yet.
type starting struct {
	log       string
	listening chan service.Addresses
	ended     chan error
}

// start runs an instance on free ports until the test ends. Small password
// hashes keep tests quick.
func start(t *testing.T, flags ...string) *instance {
	t.Helper()
	return begin(t, flags...).wait(t)
}

func begin(t *testing.T, flags ...string) *starting {
	t.Helper()
	dir := t.TempDir()
	secret := filepath.Join(dir, "key")
	require.NoError(t, os.WriteFile(secret, []byte(testSecret+"\n"), 0o600))
	flags = append([]string{
		"--mesh", "plaintext", "--environment", "test", "--mode", "test", "--drain-delay", "0s",
		"--key-encryption-key-file", secret, "--password-memory", "64", "--password-passes", "1", "--log-level", "debug",
	}, flags...)
	cfg, err := service.Parse[config]("account", flags, io.Discard)
	require.NoError(t, err)
	s := &starting{log: filepath.Join(dir, "log"), listening: make(chan service.Addresses, 1), ended: make(chan error, 1)}
	cfg.OnListening = func(a service.Addresses) { s.listening <- a }
	cfg.LogOutput, err = os.Create(s.log)
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		s.ended <- run(ctx, cfg)
		close(s.ended)
	}()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-s.ended)
		if t.Failed() {
			t.Logf("the log:\n%s", s.logged())
		}
		cfg.LogOutput.Close()
	})
	return s
}

func (s *starting) logged() string {
	text, _ := os.ReadFile(s.log)
	return string(text)
}

func (s *starting) wait(t *testing.T) *instance {
	t.Helper()
	select {
	case a := <-s.listening:
		conn, err := grpc.NewClient(a.Mesh, grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		return &instance{accountv1.NewAccountServiceClient(conn), a}
	case err := <-s.ended:
		t.Fatalf("the service ended: %v\n%s", err, s.logged())
	case <-time.After(30 * time.Second):
		t.Fatalf("the service does not listen within 30 s\n%s", s.logged())
	}
	return nil
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func bearer(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// refused requires that err is a fault with this code and reason.
func refused(t *testing.T, err error, code codes.Code, reason string) *fault.Error {
	t.Helper()
	require.Error(t, err)
	f := grpcfault.FromStatus(status.Convert(err))
	require.Equal(t, [2]string{code.String(), reason}, [2]string{status.Code(err).String(), f.Reason}, "%v", err)
	return f
}

const goodPassword = "violet tugboat 94"

// account signs up and logs in.
func (i *instance) account(t *testing.T, name string) (*accountv1.Account, string) {
	t.Helper()
	_, err := i.SignUp(within(t), &accountv1.SignUpRequest{RequestId: "request-" + name, Name: name, Password: goodPassword})
	require.NoError(t, err)
	in, err := i.LogIn(within(t), &accountv1.LogInRequest{Name: name, Password: goodPassword})
	require.NoError(t, err)
	return in.GetAccount(), in.GetAccessToken()
}

func TestRun(t *testing.T) {
	pg := pgtest.Start(t)
	one := start(t, databaseFlags(pg, t)...)
	ctx := within(t)

	up, err := one.SignUp(ctx, &accountv1.SignUpRequest{RequestId: "0123-4567", Name: "Ada.Lovelace", Password: goodPassword})
	require.NoError(t, err)
	require.Regexp(t, `^acc_[0-9A-HJKMNP-TV-Z]{26}$`, up.GetAccount().GetAccountId())
	require.Equal(t, "Ada.Lovelace", up.GetAccount().GetName())
	require.WithinDuration(t, time.Now(), up.GetAccount().GetCreateTime().AsTime(), time.Minute)

	in, err := one.LogIn(ctx, &accountv1.LogInRequest{Name: "ADA.lovelace", Password: goodPassword})
	require.NoError(t, err)
	require.Equal(t, up.GetAccount().String(), in.GetAccount().String())
	require.WithinDuration(t, time.Now().Add(5*time.Minute), in.GetExpireTime().AsTime(), 10*time.Second)

	keys, err := one.GetSigningKeys(ctx, &accountv1.GetSigningKeysRequest{})
	require.NoError(t, err)
	require.Len(t, keys.GetKeys(), 1)
	require.Empty(t, keys.GetEndedSessions())
	var claims jwt.MapClaims
	_, err = jwt.ParseWithClaims(in.GetAccessToken(), &claims, func(token *jwt.Token) (any, error) {
		require.Equal(t, keys.GetKeys()[0].GetKeyId(), token.Header["kid"])
		return ed25519.PublicKey(keys.GetKeys()[0].GetPublicKey()), nil
	}, jwt.WithValidMethods([]string{"EdDSA"}), jwt.WithIssuer("marquee/account"), jwt.WithAudience("test"), jwt.WithExpirationRequired(), jwt.WithIssuedAt())
	require.NoError(t, err)
	require.Equal(t, up.GetAccount().GetAccountId(), claims["sub"])

	set, err := one.GetJSONWebKeySet(ctx, &accountv1.GetJSONWebKeySetRequest{})
	require.NoError(t, err)
	require.Len(t, set.GetKeys(), 1)
	x, err := base64.RawURLEncoding.DecodeString(set.GetKeys()[0].GetX())
	require.NoError(t, err)
	require.Equal(t, keys.GetKeys()[0].GetPublicKey(), x)
	text, err := protojson.Marshal(set.GetKeys()[0])
	require.NoError(t, err)
	require.JSONEq(t, fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","use":"sig","kid":%q,"x":%q}`,
		keys.GetKeys()[0].GetKeyId(), set.GetKeys()[0].GetX()), string(text))

	for _, id := range []string{"me", up.GetAccount().GetAccountId()} {
		got, err := one.GetAccount(bearer(ctx, in.GetAccessToken()), &accountv1.GetAccountRequest{AccountId: id})
		require.NoError(t, err)
		require.Equal(t, up.GetAccount().String(), got.GetAccount().String())
	}

	// The session ends at once on the instance that was asked.
	_, err = one.LogOut(bearer(ctx, in.GetAccessToken()), &accountv1.LogOutRequest{})
	require.NoError(t, err)
	_, err = one.GetAccount(bearer(ctx, in.GetAccessToken()), &accountv1.GetAccountRequest{AccountId: "me"})
	refused(t, err, codes.Unauthenticated, "SESSION_ENDED")
	keys, err = one.GetSigningKeys(ctx, &accountv1.GetSigningKeysRequest{})
	require.NoError(t, err)
	require.Len(t, keys.GetEndedSessions(), 1)
	require.Equal(t, claims["sid"], keys.GetEndedSessions()[0].GetSessionId())
}

func TestRunThreeAtOnce(t *testing.T) {
	pg := pgtest.Start(t)
	flags := databaseFlags(pg, t)
	// All three find an empty database and migrate it.
	var (
		pending   [3]*starting
		instances [3]*instance
	)
	for n := range pending {
		pending[n] = begin(t, flags...)
	}
	for n := range pending {
		instances[n] = pending[n].wait(t)
	}
	ctx := within(t)

	t.Run("OKSharedKeys", func(t *testing.T) {
		_, token := instances[0].account(t, "shared")
		for _, i := range instances {
			_, err := i.GetAccount(bearer(ctx, token), &accountv1.GetAccountRequest{AccountId: "me"})
			require.NoError(t, err)
			keys, err := i.GetSigningKeys(ctx, &accountv1.GetSigningKeysRequest{})
			require.NoError(t, err)
			require.Len(t, keys.GetKeys(), 1, "each instance made a key of its own")
		}
	})

	t.Run("OKLogOutEverywhere", func(t *testing.T) {
		_, token := instances[0].account(t, "leaver")
		began := time.Now()
		_, err := instances[0].LogOut(bearer(ctx, token), &accountv1.LogOutRequest{})
		require.NoError(t, err)
		for _, i := range instances {
			require.Eventually(t, func() bool {
				_, err := i.GetAccount(bearer(ctx, token), &accountv1.GetAccountRequest{AccountId: "me"})
				return status.Code(err) == codes.Unauthenticated
			}, 5*time.Second, 20*time.Millisecond, "the session goes on")
			keys, err := i.GetSigningKeys(ctx, &accountv1.GetSigningKeysRequest{})
			require.NoError(t, err)
			require.Len(t, keys.GetEndedSessions(), 1)
		}
		t.Logf("the log-out was effective on all three instances within %s", time.Since(began).Round(time.Millisecond))
	})

	t.Run("OKOneAccountOfFiftySignUps", func(t *testing.T) {
		req := &accountv1.SignUpRequest{RequestId: "fifty-times", Name: "fifty", Password: goodPassword}
		answers := make([]string, 50)
		errs := make([]error, 50)
		var all sync.WaitGroup
		for n := range answers {
			all.Go(func() {
				up, err := instances[n%3].SignUp(ctx, req)
				answers[n], errs[n] = up.GetAccount().String(), err
			})
		}
		all.Wait()
		for n := range answers {
			require.NoError(t, errs[n])
			require.Equal(t, answers[0], answers[n])
		}
	})

	t.Run("ErrNameTakenInARace", func(t *testing.T) {
		var (
			all    sync.WaitGroup
			mu     sync.Mutex
			counts = map[string]int{}
		)
		for n := range 30 {
			all.Go(func() {
				name := "racer"
				if n%2 == 0 {
					name = "RACER"
				}
				_, err := instances[n%3].SignUp(ctx, &accountv1.SignUpRequest{RequestId: fmt.Sprint("race-number-", n), Name: name, Password: goodPassword})
				mu.Lock()
				defer mu.Unlock()
				counts[status.Code(err).String()]++
			})
		}
		all.Wait()
		require.Equal(t, map[string]int{"OK": 1, "AlreadyExists": 29}, counts)
	})
}

func TestRunRefuses(t *testing.T) {
	pg := pgtest.Start(t)
	one := start(t, databaseFlags(pg, t)...)
	_, mine := one.account(t, "mine")
	other, _ := one.account(t, "other")

	signUp := func(requestID, name, password string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := one.SignUp(ctx, &accountv1.SignUpRequest{RequestId: requestID, Name: name, Password: password})
			return err
		}
	}
	logIn := func(name, password string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := one.LogIn(ctx, &accountv1.LogInRequest{Name: name, Password: password})
			return err
		}
	}
	get := func(token, id string) func(context.Context) error {
		return func(ctx context.Context) error {
			if token != "" {
				ctx = bearer(ctx, token)
			}
			_, err := one.GetAccount(ctx, &accountv1.GetAccountRequest{AccountId: id})
			return err
		}
	}
	with := func(ctx context.Context, token string) context.Context {
		if token == "" {
			return ctx
		}
		return bearer(ctx, token)
	}
	logInFrom := func(name, device string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := one.LogIn(ctx, &accountv1.LogInRequest{Name: name, Password: goodPassword, DeviceToken: device})
			return err
		}
	}
	refresh := func(requestID, token string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := one.RefreshSession(ctx, &accountv1.RefreshSessionRequest{RequestId: requestID, RefreshToken: token})
			return err
		}
	}
	sessions := func(token string, size int32, page string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := one.ListSessions(with(ctx, token), &accountv1.ListSessionsRequest{PageSize: size, PageToken: page})
			return err
		}
	}
	events := func(token string, size int32, page string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := one.ListAuditEvents(with(ctx, token), &accountv1.ListAuditEventsRequest{PageSize: size, PageToken: page})
			return err
		}
	}
	revoke := func(token, session string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := one.RevokeSession(with(ctx, token), &accountv1.RevokeSessionRequest{SessionId: session})
			return err
		}
	}
	change := func(token, current, replacement string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := one.ChangePassword(with(ctx, token), &accountv1.ChangePasswordRequest{CurrentPassword: current, NewPassword: replacement})
			return err
		}
	}
	for name, tc := range map[string]struct {
		call   func(context.Context) error
		code   codes.Code
		reason string
		field  string
	}{
		"ErrNameTaken":             {signUp("request-1", "MINE", goodPassword), codes.AlreadyExists, "NAME_TAKEN", "name"},
		"ErrRequestIDReused":       {signUp("request-mine", "mine", goodPassword+"!"), codes.Aborted, "REQUEST_ID_REUSED", "request_id"},
		"ErrRequestIDReusedByName": {signUp("request-mine", "fresh", goodPassword), codes.Aborted, "REQUEST_ID_REUSED", "request_id"},
		"ErrRequestIDShort":        {signUp("short", "fresh", goodPassword), codes.InvalidArgument, "VALIDATION_FAILED", "request_id"},
		"ErrRequestIDCharacters":   {signUp("request id", "fresh", goodPassword), codes.InvalidArgument, "VALIDATION_FAILED", "request_id"},
		"ErrNameShort":             {signUp("request-2", "ab", goodPassword), codes.InvalidArgument, "VALIDATION_FAILED", "name"},
		"ErrNameCharacters":        {signUp("request-2", "a/../b", goodPassword), codes.InvalidArgument, "VALIDATION_FAILED", "name"},
		"ErrNameUnicode":           {signUp("request-2", "Äda", goodPassword), codes.InvalidArgument, "VALIDATION_FAILED", "name"},
		"ErrNameNewline":           {signUp("request-2", "ada\n", goodPassword), codes.InvalidArgument, "VALIDATION_FAILED", "name"},
		"ErrPasswordShort":         {signUp("request-2", "fresh", "x7$kQ2v"), codes.InvalidArgument, "VALIDATION_FAILED", "password"},
		"ErrPasswordLong":          {signUp("request-2", "fresh", strings.Repeat("x7$kQ2v", 40)), codes.InvalidArgument, "VALIDATION_FAILED", "password"},
		"ErrPasswordCommon":        {signUp("request-2", "fresh", "password1"), codes.InvalidArgument, "PASSWORD_TOO_WEAK", "password"},
		"ErrPasswordIsName":        {signUp("request-2", "fresh", "xx-FRESH-94-tug"), codes.InvalidArgument, "PASSWORD_TOO_WEAK", "password"},
		"ErrPasswordControl":       {signUp("request-2", "fresh", "violet\x00tugboat"), codes.InvalidArgument, "VALIDATION_FAILED", "password"},
		"ErrWrongPassword":         {logIn("mine", goodPassword+"!"), codes.Unauthenticated, "WRONG_CREDENTIALS", ""},
		"ErrWrongName":             {logIn("nobody", goodPassword), codes.Unauthenticated, "WRONG_CREDENTIALS", ""},
		"ErrWrongPasswordControl":  {logIn("mine", "violet\x00tugboat"), codes.Unauthenticated, "WRONG_CREDENTIALS", ""},
		"ErrLogInEmpty":            {logIn("", ""), codes.InvalidArgument, "VALIDATION_FAILED", "name"},
		"ErrTokenMissing":          {get("", "me"), codes.Unauthenticated, "TOKEN_MISSING", ""},
		"ErrTokenInvalid":          {get("rubbish", "me"), codes.Unauthenticated, "TOKEN_INVALID", ""},
		"ErrNotYourAccount":        {get(mine, other.GetAccountId()), codes.PermissionDenied, "NOT_YOUR_ACCOUNT", ""},
		"ErrNameCyrillic":          {signUp("request-2", "p\u0430yments", goodPassword), codes.InvalidArgument, "VALIDATION_FAILED", "name"},
		"ErrNameKelvin":            {signUp("request-2", "\u212aelvin", goodPassword), codes.InvalidArgument, "VALIDATION_FAILED", "name"},
		"ErrNameSQL":               {signUp("request-2", "x'; DROP TABLE accounts", goodPassword), codes.InvalidArgument, "VALIDATION_FAILED", "name"},
		"ErrLogInNull":             {logIn("mine\x00", goodPassword), codes.Unauthenticated, "WRONG_CREDENTIALS", ""},
		"ErrDeviceTokenLong":       {logInFrom("mine", strings.Repeat("x", 129)), codes.InvalidArgument, "VALIDATION_FAILED", "device_token"},
		"ErrRefreshEmpty":          {refresh("request-1", ""), codes.InvalidArgument, "VALIDATION_FAILED", "refresh_token"},
		"ErrRefreshLong":           {refresh("request-1", strings.Repeat("x", 129)), codes.InvalidArgument, "VALIDATION_FAILED", "refresh_token"},
		"ErrRefreshRequestID":      {refresh("", "rft_x"), codes.InvalidArgument, "VALIDATION_FAILED", "request_id"},
		"ErrRefreshInvalid":        {refresh("request-1", "rft_x"), codes.Unauthenticated, "REFRESH_TOKEN_INVALID", ""},
		"ErrSessionsPageSize":      {sessions(mine, -1, ""), codes.InvalidArgument, "VALIDATION_FAILED", "page_size"},
		"ErrSessionsPageSizeLarge": {sessions(mine, 201, ""), codes.InvalidArgument, "VALIDATION_FAILED", "page_size"},
		"ErrSessionsPageToken":     {sessions(mine, 1, "x"), codes.InvalidArgument, "PAGE_TOKEN_INVALID", "page_token"},
		"ErrSessionsPageTokenLong": {sessions(mine, 1, strings.Repeat("x", 257)), codes.InvalidArgument, "VALIDATION_FAILED", "page_token"},
		"ErrSessionsToken":         {sessions("", 1, ""), codes.Unauthenticated, "TOKEN_MISSING", ""},
		"ErrEventsPageSize":        {events(mine, -1, ""), codes.InvalidArgument, "VALIDATION_FAILED", "page_size"},
		"ErrEventsPageToken":       {events(mine, 1, "x"), codes.InvalidArgument, "PAGE_TOKEN_INVALID", "page_token"},
		"ErrEventsToken":           {events("", 1, ""), codes.Unauthenticated, "TOKEN_MISSING", ""},
		"ErrRevokeMalformed":       {revoke(mine, "ses_1"), codes.InvalidArgument, "VALIDATION_FAILED", "session_id"},
		"ErrRevokeEmpty":           {revoke(mine, ""), codes.InvalidArgument, "VALIDATION_FAILED", "session_id"},
		"ErrRevokeUnknown":         {revoke(mine, "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV"), codes.NotFound, "SESSION_NOT_FOUND", ""},
		"ErrRevokeToken":           {revoke("", "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV"), codes.Unauthenticated, "TOKEN_MISSING", ""},
		"ErrChangeEmpty":           {change(mine, "", "amber kayak 31 drum"), codes.InvalidArgument, "VALIDATION_FAILED", "current_password"},
		"ErrChangeShort":           {change(mine, goodPassword, "x7$kQ2v"), codes.InvalidArgument, "VALIDATION_FAILED", "new_password"},
		"ErrChangeLong":            {change(mine, goodPassword, strings.Repeat("x7$kQ2v", 40)), codes.InvalidArgument, "VALIDATION_FAILED", "new_password"},
		"ErrChangeWeak":            {change(mine, goodPassword, "password1"), codes.InvalidArgument, "PASSWORD_TOO_WEAK", "new_password"},
		"ErrChangeIsName":          {change(mine, goodPassword, "xx-MINE-94-tugboat"), codes.InvalidArgument, "PASSWORD_TOO_WEAK", "new_password"},
		"ErrChangeWrong":           {change(mine, goodPassword+"!", "amber kayak 31 drum"), codes.PermissionDenied, "WRONG_PASSWORD", "current_password"},
		"ErrChangeToken":           {change("", goodPassword, "amber kayak 31 drum"), codes.Unauthenticated, "TOKEN_MISSING", ""},
		"ErrAccountIDMalformed":    {get(mine, "acc_1"), codes.InvalidArgument, "VALIDATION_FAILED", "account_id"},
	} {
		t.Run(name, func(t *testing.T) {
			f := refused(t, tc.call(within(t)), tc.code, tc.reason)
			if tc.field == "" {
				require.Empty(t, f.Fields)
				return
			}
			require.NotEmpty(t, f.Fields)
			require.Equal(t, tc.field, f.Fields[0].Path)
			require.NotEmpty(t, f.Fields[0].Description)
			require.NotContains(t, f.Message+f.Fields[0].Description, goodPassword)
		})
	}
}

func TestRunOutage(t *testing.T) {
	pg := pgtest.Start(t)
	flags := databaseFlags(pg, t)
	one := start(t, flags...)
	_, token := one.account(t, "patient")
	ready := func() int {
		resp, err := http.Get("http://" + one.addresses.Admin + "/readyz")
		require.NoError(t, err)
		defer resp.Body.Close()
		return resp.StatusCode
	}
	require.Eventually(t, func() bool { return ready() == http.StatusOK }, 10*time.Second, 50*time.Millisecond)

	pg.Stop(t)
	_, err := one.GetAccount(bearer(within(t), token), &accountv1.GetAccountRequest{AccountId: "me"})
	f := refused(t, err, codes.Unavailable, "DATABASE_UNAVAILABLE")
	require.Equal(t, time.Second, f.RetryAfter)
	require.Eventually(t, func() bool { return ready() == http.StatusServiceUnavailable }, 10*time.Second, 50*time.Millisecond, "it stays ready without its database")

	// One that starts now waits; it is there as soon as the database is.
	second := begin(t, flags...)
	require.Eventually(t, func() bool { return strings.Contains(second.logged(), "waiting for the database") },
		10*time.Second, 20*time.Millisecond, "it does not say what it waits for")
	pg.Restart(t)
	require.Eventually(t, func() bool {
		_, err := one.GetAccount(bearer(within(t), token), &accountv1.GetAccountRequest{AccountId: "me"})
		return err == nil
	}, 10*time.Second, 50*time.Millisecond, "it does not come back with its database")
	_, err = second.wait(t).GetAccount(bearer(within(t), token), &accountv1.GetAccountRequest{AccountId: "me"})
	require.NoError(t, err)
}

// TestRunSessions is the life of two sessions as a client sees it.
func TestRunSessions(t *testing.T) {
	pg := pgtest.Start(t)
	one := start(t, databaseFlags(pg, t)...)
	ctx := metadata.AppendToOutgoingContext(within(t), "x-forwarded-for", "192.0.2.44")
	up, err := one.SignUp(ctx, &accountv1.SignUpRequest{RequestId: "request-1", Name: "ada", Password: goodPassword})
	require.NoError(t, err)
	laptop, err := one.LogIn(ctx, &accountv1.LogInRequest{Name: "ada", Password: goodPassword})
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(30*24*time.Hour), laptop.GetRefreshExpireTime().AsTime(), time.Minute)
	phone, err := one.LogIn(ctx, &accountv1.LogInRequest{Name: "ada", Password: goodPassword})
	require.NoError(t, err)
	_, err = one.LogIn(ctx, &accountv1.LogInRequest{Name: "ada", Password: "wrong"})
	refused(t, err, codes.Unauthenticated, "WRONG_CREDENTIALS")

	// The phone's session goes on; a copy of its spent token ends it.
	next, err := one.RefreshSession(ctx, &accountv1.RefreshSessionRequest{RequestId: "refresh-1", RefreshToken: phone.GetRefreshToken()})
	require.NoError(t, err)
	require.NotEqual(t, phone.GetRefreshToken(), next.GetRefreshToken())
	_, err = one.GetAccount(bearer(ctx, next.GetAccessToken()), &accountv1.GetAccountRequest{AccountId: "me"})
	require.NoError(t, err)
	_, err = one.RefreshSession(ctx, &accountv1.RefreshSessionRequest{RequestId: "refresh-2", RefreshToken: phone.GetRefreshToken()})
	refused(t, err, codes.Unauthenticated, "REFRESH_TOKEN_REUSED")
	_, err = one.GetAccount(bearer(ctx, next.GetAccessToken()), &accountv1.GetAccountRequest{AccountId: "me"})
	refused(t, err, codes.Unauthenticated, "SESSION_ENDED")
	_, err = one.RefreshSession(ctx, &accountv1.RefreshSessionRequest{RequestId: "refresh-3", RefreshToken: next.GetRefreshToken()})
	refused(t, err, codes.Unauthenticated, "SESSION_ENDED")

	mine := bearer(ctx, laptop.GetAccessToken())
	_, err = one.ChangePassword(mine, &accountv1.ChangePasswordRequest{CurrentPassword: goodPassword, NewPassword: "amber kayak 31 drum"})
	require.NoError(t, err)

	list, err := one.ListSessions(mine, &accountv1.ListSessionsRequest{})
	require.NoError(t, err)
	require.Len(t, list.GetSessions(), 2)
	require.Empty(t, list.GetNextPageToken())
	byCurrent := map[bool]*accountv1.Session{}
	for _, session := range list.GetSessions() {
		byCurrent[session.GetCurrent()] = session
		require.Equal(t, "192.0.2.44", session.GetAddress())
	}
	require.Nil(t, byCurrent[true].GetEndTime())
	require.Equal(t, accountv1.SessionEndReason_SESSION_END_REASON_REFRESH_TOKEN_REUSED, byCurrent[false].GetEndReason())
	require.NotNil(t, byCurrent[false].GetEndTime())
	_, err = one.RevokeSession(mine, &accountv1.RevokeSessionRequest{SessionId: byCurrent[false].GetSessionId()})
	require.NoError(t, err)

	counts := map[string]int{}
	page := &accountv1.ListAuditEventsRequest{PageSize: 2}
	for {
		events, err := one.ListAuditEvents(mine, page)
		require.NoError(t, err)
		for _, e := range events.GetEvents() {
			require.NotEqual(t, accountv1.AuditKind_AUDIT_KIND_UNSPECIFIED, e.GetKind())
			require.Equal(t, "192.0.2.44", e.GetAddress())
			require.Contains(t, []string{up.GetAccount().GetAccountId(), ""}, e.GetActorId())
			counts[strings.TrimPrefix(e.GetKind().String(), "AUDIT_KIND_")]++
		}
		if page.PageToken = events.GetNextPageToken(); page.PageToken == "" {
			break
		}
	}
	require.Equal(t, map[string]int{"SIGNED_UP": 1, "LOGGED_IN": 2, "LOG_IN_FAILED": 1, "REFRESH_TOKEN_REUSED": 1, "PASSWORD_CHANGED": 1}, counts)
}

// TestRunManyLogOuts: within the life of an access token 81,000 sessions ended
// and 9,000 accounts have other roles, which is more than gRPC sends and takes in
// one message. Services still learn of all of them.
func TestRunManyLogOuts(t *testing.T) {
	ended, changed := 81_000, 9_000
	if raced {
		// What an instance reads every other second takes ten times as long.
		ended, changed = 8_100, 900
	}
	pg := pgtest.Start(t)
	flags := databaseFlags(pg, t)
	one := start(t, flags...)
	_, token := one.account(t, "ada")
	db, err := pgx.Connect(t.Context(), fmt.Sprintf("host=%s dbname=%s user=%s", flags[1], flags[3], flags[5]))
	require.NoError(t, err)
	defer db.Close(context.Background())
	tx, err := db.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `INSERT INTO sessions (session_id, account_id, create_time, token_expire_time, end_time, end_reason)
		SELECT 'ses_' || lpad(n::text, 26, '0'), account_id, now(), now() + interval '5 minutes', now(), 'LOGGED_OUT' FROM accounts, generate_series(1, $1) AS n`, ended)
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `INSERT INTO accounts (account_id, name, name_key, password_hash, create_time, roles_version, roles_change_time)
		SELECT 'acc_' || lpad(n::text, 26, '0'), 'n' || n, 'n' || n, '$argon2id$', now(), 1000000, now() FROM generate_series(1, $1) AS n`, changed)
	require.NoError(t, err)

	require.NoError(t, tx.Commit(t.Context()))

	// A machine with much else to do may be late with what it reads.
	patient := func(call func() error) {
		t.Helper()
		require.Eventually(t, func() bool {
			err = call()
			return status.Code(err) != codes.Unavailable
		}, 20*time.Second, 20*time.Millisecond)
		require.NoError(t, err)
	}
	ask := func(page *accountv1.GetSigningKeysRequest) (answer *accountv1.GetSigningKeysResponse) {
		patient(func() (err error) {
			answer, err = one.GetSigningKeys(within(t), page)
			return err
		})
		return answer
	}

	require.Eventually(t, func() bool {
		answer, err := one.GetSigningKeys(within(t), &accountv1.GetSigningKeysRequest{PageSize: 1})
		return err == nil && answer.GetNextPageToken() != ""
	}, 20*time.Second, 20*time.Millisecond, "it does not learn of them")
	if !raced {
		// Without pages it says so, and does not send what is not received.
		require.Eventually(t, func() bool {
			_, err = one.GetSigningKeys(within(t), &accountv1.GetSigningKeysRequest{})
			return status.Code(err) != codes.Unavailable
		}, 20*time.Second, 20*time.Millisecond)
		refused(t, err, codes.FailedPrecondition, "PAGES_NEEDED")
	}

	var (
		began   = time.Now()
		size    = int32((ended + changed) * 2 / 11)
		ids     = map[string]bool{}
		pages   int
		largest int
	)
	for page := (&accountv1.GetSigningKeysRequest{PageSize: size}); ; {
		answer := ask(page)
		require.NotEmpty(t, answer.GetKeys())
		for _, session := range answer.GetEndedSessions() {
			ids[session.GetSessionId()] = true
		}
		for _, account := range answer.GetChangedAccounts() {
			ids[account.GetAccountId()] = true
		}
		pages, largest = pages+1, max(largest, proto.Size(answer))
		if page.PageToken = answer.GetNextPageToken(); page.PageToken == "" {
			break
		}
	}
	t.Logf("%d ended or changed in %d pages of at most %d bytes took %s", len(ids), pages, largest, time.Since(began).Round(time.Millisecond))
	require.Len(t, ids, ended+changed)
	require.Equal(t, 6, pages)

	// So does every service: it refuses what ended, and no other token.
	keys := auth.NewRemoteKeys(one.conn(t), nil)
	reading, stop := context.WithCancel(t.Context())
	var background sync.WaitGroup
	background.Go(func() { _ = keys.Run(reading) })
	defer background.Wait()
	defer stop()
	require.Eventually(t, func() bool { return keys.Available() == nil }, 20*time.Second, 10*time.Millisecond, "the verifiers are lost")
	for n := 1; n <= ended; n += 799 {
		require.True(t, keys.SessionEnded(fmt.Sprintf("ses_%026d", n)))
	}
	require.False(t, keys.SessionEnded(fmt.Sprintf("ses_%026d", ended+1)))
	require.EqualValues(t, 1_000_000, keys.RolesVersion(fmt.Sprintf("acc_%026d", changed)))

	// The largest page that can be asked for is received, and a token is judged.
	ask(&accountv1.GetSigningKeysRequest{PageSize: 50_000})
	patient(func() error {
		_, err := one.GetJSONWebKeySet(within(t), &accountv1.GetJSONWebKeySetRequest{})
		return err
	})
	patient(func() error {
		_, err := one.GetAccount(bearer(within(t), token), &accountv1.GetAccountRequest{AccountId: "me"})
		return err
	})
}

// TestRunThrottle sees the delay that a guesser is told.
func TestRunThrottle(t *testing.T) {
	pg := pgtest.Start(t)
	one := start(t, append(databaseFlags(pg, t), "--log-in-name-burst", "3", "--log-in-name-every", "20s")...)
	_, _ = one.account(t, "ada")
	for range 3 {
		_, err := one.LogIn(within(t), &accountv1.LogInRequest{Name: "ada", Password: "wrong"})
		refused(t, err, codes.Unauthenticated, "WRONG_CREDENTIALS")
	}
	_, err := one.LogIn(within(t), &accountv1.LogInRequest{Name: "ada", Password: goodPassword})
	f := refused(t, err, codes.ResourceExhausted, "LOG_IN_THROTTLED")
	require.Greater(t, f.RetryAfter, 10*time.Second)
	require.LessOrEqual(t, f.RetryAfter, 20*time.Second)
}

// TestRunFlood measures that log-ins, however many, leave the rest of the
// service usable, with the password hashes that production has.
func TestRunFlood(t *testing.T) {
	pg := pgtest.Start(t)
	one := start(t, append(databaseFlags(pg, t), "--password-memory", "19456", "--password-passes", "2", "--password-queue", "8")...)
	_, token := one.account(t, "reader")

	measure := func() []time.Duration {
		took := make([]time.Duration, 60)
		for n := range took {
			began := time.Now()
			_, err := one.GetAccount(bearer(within(t), token), &accountv1.GetAccountRequest{AccountId: "me"})
			require.NoError(t, err)
			took[n] = time.Since(began)
		}
		return took
	}
	var (
		mu     sync.Mutex
		counts = map[codes.Code]int{}
	)
	count := func(code codes.Code) int {
		mu.Lock()
		defer mu.Unlock()
		return counts[code]
	}
	logIn := func(flood context.Context, worker int) {
		for n := 0; flood.Err() == nil; n++ {
			// A name that nobody has, and that has a budget of its own: as in a flood
			// that the throttle does not know from many people.
			_, err := one.LogIn(flood, &accountv1.LogInRequest{Name: fmt.Sprintf("nobody-%d-%d", worker, n), Password: "wrong"})
			mu.Lock()
			counts[status.Code(err)]++
			mu.Unlock()
			if status.Code(err) == codes.ResourceExhausted {
				if f := grpcfault.FromStatus(status.Convert(err)); f.Reason != "OVERLOADED" || f.RetryAfter <= 0 {
					t.Errorf("turned away with %v", f)
				}
				// As a caller that honours a tenth of the delay it is told.
				select {
				case <-time.After(100 * time.Millisecond):
				case <-flood.Done():
				}
			}
		}
	}

	// By turns, so that what else the machine does weighs on both alike.
	var calm, flooded []time.Duration
	for range 5 {
		calm = append(calm, measure()...)
		func() {
			var all sync.WaitGroup
			defer all.Wait()
			flood, stop := context.WithCancel(t.Context())
			defer stop()
			answered := count(codes.ResourceExhausted) + count(codes.Unauthenticated)
			for worker := range 64 {
				all.Go(func() { logIn(flood, worker) })
			}
			require.Eventually(t, func() bool {
				return count(codes.ResourceExhausted)+count(codes.Unauthenticated) > answered
			}, 20*time.Second, 10*time.Millisecond, "the flood does not begin")
			served := count(codes.Unauthenticated)
			flooded = append(flooded, measure()...)
			// A quick machine measures within the time that one hash takes.
			require.Eventually(t, func() bool { return count(codes.Unauthenticated) > served },
				20*time.Second, 10*time.Millisecond, "no log-in is served in the flood")
		}()
	}
	slices.Sort(calm)
	slices.Sort(flooded)
	mid, high := len(calm)/2, len(calm)*99/100
	t.Logf("GetAccount: calm p50 %s p99 %s, under 64 concurrent log-ins p50 %s p99 %s; log-ins: %v", calm[mid], calm[high], flooded[mid], flooded[high], counts)
	require.Less(t, flooded[mid], 5*time.Millisecond+4*calm[mid], "the flood slows everything else down")
	require.Positive(t, counts[codes.Unauthenticated], "no log-in was served at all")
	require.Greater(t, counts[codes.ResourceExhausted], 64, "nobody was turned away")
}

func TestConfiguration(t *testing.T) {
	t.Setenv("NOMAD_MEMORY_LIMIT", "")
	for name, tc := range map[string]struct {
		flags []string
		want  string
	}{
		"ErrKeyMissing":      {[]string{"--database-password-file", "/dev/null"}, "--key-encryption-key-file: is needed"},
		"ErrPasswordMissing": {[]string{"--key-encryption-key-file", "/dev/null"}, "--database-password-file: is needed"},
		"ErrPublishAhead":    {[]string{"--key-publish-ahead", "10s"}, "--key-publish-ahead: publishing a signing key 10s ahead: want at least 30s"},
		"ErrSignFor":         {[]string{"--key-sign-for", "11m"}, "--key-sign-for: signing for 11m0s with keys published 10m0s ahead"},
		"ErrMemory":          {[]string{"--password-memory", "1"}, "--password-memory: argon2id with 1 KiB"},
		"ErrPasses":          {[]string{"--password-passes", "65"}, "--password-passes: argon2id with 65 passes"},
		"ErrThreads":         {[]string{"--password-threads", "0"}, "--password-threads: argon2id with 0 threads"},
		"ErrDatabaseHost":    {[]string{"--mode", "production", "--database-host", "db.example.com"}, "--database-host: db.example.com would be spoken to without encryption; use mesh"},
		"ErrOneDatabaseHost": {[]string{"--mode", "production", "--database-host", "127.0.0.1,10.0.0.1"}, "--database-host: 127.0.0.1,10.0.0.1 would"},
		"ErrConcurrency":     {[]string{"--mode", "production", "--password-concurrency", "7"}, "--password-concurrency: 7 hashes of 19456 KiB (--password-memory) take more than half of the 256 MiB"},
		"ErrNameBurst":       {[]string{"--log-in-name-burst", "0"}, "--log-in-name-burst: 0 wrong passwords at once: want 1 to"},
		"ErrAddressEvery":    {[]string{"--log-in-address-every", "0s"}, "--log-in-address-every: one more wrong password each 0s: want 1ms to 1h"},
		"ErrMaxConns":        {[]string{"--database-max-conns", "0"}, "--database-max-conns: 0 is out of range"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := service.Parse[config]("account", tc.flags, io.Discard)
			require.ErrorContains(t, err, tc.want)
		})
	}

	t.Run("OKConcurrency", func(t *testing.T) {
		valid := []string{"--mesh", "plaintext", "--database-host", "x", "--key-encryption-key-file", "/dev/null"}
		for _, tc := range []struct {
			memory string // NOMAD_MEMORY_LIMIT
			cores  int
			flags  []string
			want   int
		}{
			{"", 2, nil, 1},
			{"", 8, nil, 4},
			{"", 64, nil, 6}, // 6 * 19 MiB is within 128 MiB
			{"1024", 64, nil, 26},
			{"64", 64, nil, 1},
			{"64", 64, []string{"--password-memory", "1048576"}, 1},
			{"", 64, []string{"--password-concurrency", "40"}, 40}, // refused in production only
		} {
			t.Setenv("NOMAD_MEMORY_LIMIT", tc.memory)
			before := runtime.GOMAXPROCS(tc.cores)
			cfg, err := service.Parse[config]("account", append(tc.flags, valid...), io.Discard)
			runtime.GOMAXPROCS(before)
			require.NoError(t, err)
			require.Equal(t, tc.want, cfg.PasswordConcurrency, "%+v", tc)
		}
	})

	t.Run("ErrKeyFile", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "key")
		require.NoError(t, os.WriteFile(path, []byte("too short"), 0o600))
		cfg, err := service.Parse[config]("account", []string{"--mesh", "plaintext", "--database-host", "x", "--key-encryption-key-file", path}, io.Discard)
		require.NoError(t, err)
		require.ErrorContains(t, run(t.Context(), cfg), "--key-encryption-key-file: "+path+": want 32 random bytes")
	})

	t.Run("OKHelp", func(t *testing.T) {
		var help bytes.Buffer
		_, err := service.Parse[config]("account", []string{"--help"}, &help)
		require.ErrorIs(t, err, service.ErrAnswered)
		require.Contains(t, help.String(), "--key-encryption-key-file")
	})
}
