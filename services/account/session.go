package account

import (
	"context"
	"fmt"
	"time"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/paging"
)

// SessionsKept is for how long sessions that ended or expired are still listed.
const SessionsKept = 30 * 24 * time.Hour

// MaxSessions bounds how many sessions of an account can be used: a log-in ends
// the oldest beyond it.
const MaxSessions = 1000

// Session is one log-in, on one device.
type Session struct {
	// ID is "ses_" and a ULID; the "sid" of its tokens.
	ID         string
	AccountID  string
	CreateTime time.Time
	// RefreshTime is when its newest access token was made, and TokenExpireTime
	// when that expires.
	RefreshTime     time.Time
	TokenExpireTime time.Time
	// RefreshHash is the hash of its newest refresh token, which is good until
	// ExpireTime.
	RefreshHash []byte
	ExpireTime  time.Time
	// Address is where it was opened from; may be empty.
	Address string
	// EndTime is when it was ended, or zero.
	EndTime   time.Time
	EndReason EndReason
}

// EndReason is why a session was ended, as it is stored.
type EndReason string

// Why sessions end before they expire.
const (
	EndLoggedOut       EndReason = "LOGGED_OUT"
	EndRevoked         EndReason = "REVOKED"
	EndPasswordChanged EndReason = "PASSWORD_CHANGED"
	EndReused          EndReason = "REFRESH_TOKEN_REUSED"
	EndTooMany         EndReason = "TOO_MANY_SESSIONS"
)

// EndedSession is a session that was ended while tokens of it may be valid.
type EndedSession struct {
	ID string
	// ExpireTime is from when on its tokens have expired anyway, so that it need
	// not be remembered.
	ExpireTime time.Time
}

// Origin is where a request came from.
type Origin struct {
	// Address is the client's, as the gateway saw it; empty where it is not known.
	Address string
}

// Tokens are what a session is used with.
type Tokens struct {
	Session Session
	// Access is good until Session.TokenExpireTime, Refresh until
	// Session.ExpireTime.
	Access, Refresh string
}

// open makes a session and its tokens; the caller stores it.
func (s *Service) open(ctx context.Context, accountID string, from Origin) (Tokens, error) {
	now := s.now().UTC().Truncate(time.Second) // the precision of a token's times
	id, err := newID("ses", now, s.random)
	if err != nil {
		return Tokens{}, err
	}
	refresh, err := s.secret.firstRefresh(id, s.random)
	if err != nil {
		return Tokens{}, err
	}
	session := Session{ID: id, AccountID: accountID, CreateTime: now, Address: from.Address}
	return s.tokens(ctx, session.refreshed(now, hashRefresh(refresh)), refresh)
}

// tokens makes the access token of a session, with the roles of this moment.
func (s *Service) tokens(ctx context.Context, session Session, refresh string) (Tokens, error) {
	granted, err := s.store.Granted(ctx, session.AccountID)
	if err != nil {
		return Tokens{}, fmt.Errorf("reading the account's roles: %w", err)
	}
	access, err := s.keys.Sign(Token{
		Subject: session.AccountID, SessionID: session.ID,
		IssueTime: session.RefreshTime, ExpireTime: session.TokenExpireTime, Granted: granted,
	})
	if err != nil {
		return Tokens{}, err
	}
	return Tokens{Session: session, Access: access, Refresh: refresh}, nil
}

// announceEnd makes the end of sessions effective on this instance at once; the
// others and the services learn of it from the store.
func (s *Service) announceEnd(sessions ...Session) {
	for _, session := range sessions {
		if !session.EndTime.IsZero() {
			s.keys.End(EndedSession{ID: session.ID, ExpireTime: session.TokenExpireTime.Add(ClockLeeway)})
		}
	}
}

// LogOut ends the caller's session: at once on this instance, and on every other
// instance and in every service within ten seconds; up to 30 s where a service
// cannot reach account (auth.LogOutWithin, auth.LogOutWithinUnreached). It is no
// error when the session is gone.
func (s *Service) LogOut(ctx context.Context, caller auth.Caller, from Origin) error {
	_, err := s.endSession(ctx, caller, caller.SessionID, EndLoggedOut, LoggedOut, from)
	return err
}

// Revoke ends one of the caller's sessions, as LogOut does. Errors:
// ErrNoSuchSession.
func (s *Service) Revoke(ctx context.Context, caller auth.Caller, sessionID string, from Origin) error {
	found, err := s.endSession(ctx, caller, sessionID, EndRevoked, SessionRevoked, from)
	if err == nil && !found {
		return ErrNoSuchSession
	}
	return err
}

func (s *Service) endSession(ctx context.Context, caller auth.Caller, sessionID string, reason EndReason, kind EventKind, from Origin) (found bool, err error) {
	event, err := s.event(kind, caller.AccountID, caller.AccountID, from)
	if err != nil {
		return false, err
	}
	event.SessionID = sessionID
	var session Session
	err = s.store.ChangeSession(ctx, sessionID, func(stored Session) (*Session, *Event) {
		if found = stored.AccountID == caller.AccountID; !found {
			return nil, nil
		}
		session = stored
		if !stored.EndTime.IsZero() {
			return nil, nil
		}
		session.EndTime, session.EndReason = event.Time, reason
		return &session, event
	})
	if err != nil {
		return false, fmt.Errorf("ending the session: %w", err)
	}
	s.announceEnd(session)
	return found, nil
}

// ListSessions returns a page of the caller's sessions, the newest first, and
// the token of the next page: those that can be used, and those that ended or
// expired within SessionsKept. Errors: ErrPageTokenInvalid.
func (s *Service) ListSessions(ctx context.Context, caller auth.Caller, page paging.Page) ([]Session, string, error) {
	return list(ctx, s, "sessions of "+caller.AccountID, page, func(ctx context.Context, before string, limit int) ([]Session, error) {
		return s.store.ListSessions(ctx, caller.AccountID, before, limit)
	}, func(session Session) string { return session.ID })
}
