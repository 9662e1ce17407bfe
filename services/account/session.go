package account

import "time"

// Session is one log-in.
type Session struct {
	// ID is "ses_" and a ULID; the "sid" of its tokens.
	ID         string
	AccountID  string
	CreateTime time.Time
	// TokenExpireTime is when its last token expires; it cannot be used after.
	TokenExpireTime time.Time
}

// EndedSession is a session that was ended by log-out.
type EndedSession struct {
	ID string
	// ExpireTime is from when on its tokens have expired anyway, so that it need
	// not be remembered.
	ExpireTime time.Time
}
