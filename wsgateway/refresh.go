package wsgateway

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// refreshTimeout is how long Config.Refresh has.
const refreshTimeout = 5 * time.Second

// authenticate extends the credentials of the connection, if Config.Refresh says
// so, and answers when it has said so. The reader goes on meanwhile.
func (c *conn) authenticate(id json.RawMessage, token string) *answer {
	switch {
	case c.h.cfg.Refresh == nil:
		return failure(id, "no_refresh", "this server does not extend credentials: reconnect")
	case token == "":
		return failure(id, "no_token", "authenticate has no token")
	case !c.refreshing.CompareAndSwap(false, true):
		return failure(id, "busy", "an authenticate is under way")
	}
	ctx, cancel := context.WithTimeout(context.Background(), refreshTimeout)
	c.stopRefresh = cancel // of one that ended there is nothing to stop
	// Owned by c. It ends when Refresh returns, whose ctx ends with the
	// connection, and run waits for it.
	c.refreshes.Go(func() {
		defer cancel()
		a := c.refresh(ctx, id, token)
		c.refreshing.Store(false)
		_ = c.answer(a) // whoever reads or writes next finds out
	})
	return nil
}

func (c *conn) refresh(ctx context.Context, id json.RawMessage, token string) (a *answer) {
	who, err := c.askRefresh(ctx, token)
	if err == nil {
		err = who.Check(time.Now())
	}
	if err != nil {
		// Errors quote what they could not read, often with %q.
		quoted := strconv.Quote(token)
		text := strings.NewReplacer(quoted, `"(the token)"`, token, "(the token)").Replace(err.Error())
		c.h.log.Debug("websocket: credentials not extended", "user", c.user, "error", text)
		return failure(id, "unauthorized", "the token was refused")
	}
	if who.UserID != c.user {
		c.h.log.Debug("websocket: credentials not extended: they are another user's", "user", c.user, "other", who.UserID)
		return failure(id, "another_user", "the token is another user's")
	}
	c.setExpires(who.Expires)
	c.sock.poke()
	a = &answer{Action: "ok", ID: id, Channels: c.session.Subscriptions()}
	if !who.Expires.IsZero() {
		left := time.Until(who.Expires).Milliseconds()
		a.ExpiresInMS = &left
	}
	return a
}

// askRefresh calls Config.Refresh. It is not in a goroutine of net/http's, which
// would catch a panic.
func (c *conn) askRefresh(ctx context.Context, token string) (who Identity, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("Config.Refresh panicked: %v", p)
			c.h.log.Error("websocket: Config.Refresh panicked", "user", c.user, "stack", string(debug.Stack()))
		}
	}()
	var expires time.Time
	if at := c.expires.Load(); at != 0 {
		expires = time.Unix(0, at)
	}
	return c.h.cfg.Refresh(ctx, Identity{UserID: c.user, Expires: expires}, token)
}
