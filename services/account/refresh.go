package account

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/marquee-ads/marquee/platform/auth"
)

const (
	// SessionIdle is how long a session can be left alone and still be refreshed.
	SessionIdle = 30 * 24 * time.Hour
	// SessionLifetime is when a session ends however much it is used.
	SessionLifetime = 90 * 24 * time.Hour
	// RefreshReplay is how long a repeated refresh gets the first answer: time
	// for a client to notice that an answer was lost, and little for a thief who
	// saw the whole request.
	RefreshReplay = 2 * time.Minute
)

// refreshToken is what a refresh token says. All of a session's are recognised
// by their MAC, so that only the hash of the newest need be stored, and one that
// was spent long ago is still told from one that never was.
type refreshToken struct {
	sessionID  string
	generation uint32 // 0 is the one of the log-in
	salt       [16]byte
}

const (
	refreshPrefix   = "rft_"
	refreshMACBytes = 16
)

// sealRefresh makes the form in which a token is handed out.
func (s *Secret) sealRefresh(t refreshToken) (string, error) {
	id, err := ulid.ParseStrict(strings.TrimPrefix(t.sessionID, "ses_"))
	if err != nil {
		return "", fmt.Errorf("making a refresh token for %s: %w", t.sessionID, err)
	}
	raw := slices.Concat(id[:], binary.BigEndian.AppendUint32(nil, t.generation), t.salt[:])
	raw = append(raw, s.mac(ofRefreshTokens, string(raw))[:refreshMACBytes]...)
	return refreshPrefix + base64.RawURLEncoding.EncodeToString(raw), nil
}

// openRefresh is false for everything that sealRefresh has not made.
func (s *Secret) openRefresh(text string) (refreshToken, bool) {
	encoded, ok := strings.CutPrefix(text, refreshPrefix)
	if !ok {
		return refreshToken{}, false
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(raw) != 16+4+16+refreshMACBytes {
		return refreshToken{}, false
	}
	body, mac := raw[:36], raw[36:]
	if !hmac.Equal(mac, s.mac(ofRefreshTokens, string(body))[:refreshMACBytes]) {
		return refreshToken{}, false
	}
	t := refreshToken{sessionID: "ses_" + ulid.ULID(body[:16]).String(), generation: binary.BigEndian.Uint32(body[16:20])}
	copy(t.salt[:], body[20:])
	return t, true
}

// firstRefresh is the refresh token of a new session.
func (s *Secret) firstRefresh(sessionID string, random io.Reader) (string, error) {
	t := refreshToken{sessionID: sessionID}
	if _, err := io.ReadFull(random, t.salt[:]); err != nil {
		return "", fmt.Errorf("reading random bytes: %w", err)
	}
	return s.sealRefresh(t)
}

// nextRefresh is the token that takes another's place. It follows from the token
// and the request id, so that a repeat of the request can be given it again
// though it is not stored.
func (s *Secret) nextRefresh(token string, of refreshToken, requestID string) (string, error) {
	next := refreshToken{sessionID: of.sessionID, generation: of.generation + 1}
	copy(next.salt[:], s.mac(ofRefreshTokens, "next", token, requestID))
	return s.sealRefresh(next)
}

// hashRefresh is what is stored of a token. It has 128 bits by chance and a MAC:
// there is nothing to guess, and so no need for a slow hash.
func hashRefresh(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// Refresh trades a refresh token for an access token and the next refresh token;
// a repeat with the same request id gets the first answer for RefreshReplay, as
// long as that has not been used. Any other use of a spent token ends the
// session. Errors: ErrRefreshTokenInvalid, ErrRefreshTokenExpired,
// ErrRefreshTokenReused, auth.ErrSessionEnded,
// ErrSigningKeysUnavailable.
func (s *Service) Refresh(ctx context.Context, requestID, token string, from Origin) (Tokens, error) {
	presented, ok := s.secret.openRefresh(token)
	if !ok {
		return Tokens{}, ErrRefreshTokenInvalid
	}
	// Better now than after the token was spent.
	if err := s.keys.CanSign(); err != nil {
		return Tokens{}, err
	}
	next, err := s.secret.nextRefresh(token, presented, requestID)
	if err != nil {
		return Tokens{}, err
	}
	now := s.now().UTC().Truncate(time.Second)
	eventID, err := newID("evt", now, s.random)
	if err != nil {
		return Tokens{}, err
	}

	var (
		session Session
		refused error = ErrRefreshTokenInvalid // when there is no such session
	)
	err = s.store.ChangeSession(ctx, presented.sessionID, func(stored Session) (*Session, *Event) {
		session, refused = stored, nil
		switch {
		case !stored.EndTime.IsZero():
			refused = auth.ErrSessionEnded
		case !now.Before(stored.ExpireTime):
			refused = ErrRefreshTokenExpired
		case bytes.Equal(stored.RefreshHash, hashRefresh(token)):
			session = stored.refreshed(now, hashRefresh(next))
			return &session, nil
		case bytes.Equal(stored.RefreshHash, hashRefresh(next)) && now.Sub(stored.RefreshTime) <= RefreshReplay:
			// The first answer: with the same key and roles the same bytes.
		default:
			refused = ErrRefreshTokenReused
			session.EndTime, session.EndReason = now, EndReused
			return &session, &Event{
				ID: eventID, AccountID: stored.AccountID, Time: now, Kind: RefreshTokenReused,
				SessionID: stored.ID, Address: from.Address,
			}
		}
		return nil, nil
	})
	if err != nil {
		return Tokens{}, fmt.Errorf("changing the session: %w", err)
	}
	if refused != nil {
		s.announceEnd(session)
		return Tokens{}, refused
	}
	return s.tokens(ctx, session, next)
}

// refreshed is the session after it was given another token.
func (s Session) refreshed(now time.Time, hash []byte) Session {
	s.RefreshTime, s.RefreshHash = now, hash
	s.TokenExpireTime = now.Add(TokenLifetime)
	s.ExpireTime = now.Add(SessionIdle)
	if last := s.CreateTime.Add(SessionLifetime); last.Before(s.ExpireTime) {
		s.ExpireTime = last
	}
	return s
}
