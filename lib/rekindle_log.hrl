%% Every line that Rekindle logs. What it is about is in the event's metadata.
-include_lib("kernel/include/logger.hrl").

-define(LOG_LINE(Level, Topic, Format, Args), ?LOG(Level, Format, Args, rekindle_log:metadata(Topic))).
