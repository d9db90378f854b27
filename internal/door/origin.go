package door

import (
	"fmt"
	"path"

	"github.com/qaexchange/notification"
)

// CheckOrigins returns an error that wraps notification.ErrInvalid if one of the
// patterns of Config.OriginPatterns is none of path.Match's.
func CheckOrigins(patterns []string) error {
	for i, p := range patterns {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("%w: Config.OriginPatterns[%d] %q: %w", notification.ErrInvalid, i, p, err)
		}
	}
	return nil
}
