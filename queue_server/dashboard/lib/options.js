// The options of a queue, in the groups in which the form shows them. What each does is told here as
// docs/queue-options.md tells it; defaults come from the server.

export const OPTION_GROUPS = [
  ["Delivery", [
    ["leaseTime", "Lease time", "s", "How long a pop holds what it got before somebody else may have it."],
    ["priority", "Priority", "", "A pop by namespace or task takes higher ones first."],
    ["delayedProcessing", "Delay", "s", "A message is handed out once it is so old."],
    ["windowBuffer", "Window", "s", "A partition is handed out once its newest message is so old."],
  ]],
  ["Failures", [
    ["retryLimit", "Retries", "", "Redeliveries after a failure; the next failure makes a dead letter."],
    ["retryDelay", "Retry delay", "ms", "A failed message comes back no earlier. Empty: at once."],
    ["retryBackoff", "Double the delay with each retry", "bool", "Up to an hour."],
    ["deliveryLimit", "Delivery limit", "", "So many deliveries without an answer make a dead letter: catches a message that kills its consumer. 0: off."],
  ]],
  ["Limits", [
    ["maxSize", "Largest backlog", "messages", "A push that would go beyond is refused. 0: off."],
    ["ttl", "Time to live", "s", "Older messages are no longer handed out, and are deleted. Empty: off."],
    ["maxWaitTimeSeconds", "Longest wait", "s", "The same as time to live. 0: off."],
    ["dedupWindowSeconds", "Deduplication window", "s", "For how long a transaction id is taken. Empty: for as long as its message is kept. 0: only within a request."],
  ]],
  ["Retention", [
    ["retentionEnabled", "Delete old messages", "bool", "By the two ages below; without this they do nothing."],
    ["retentionSeconds", "Age of any message", "s", "0: off."],
    ["completedRetentionSeconds", "Age of messages that every group has read", "s", "0: off."],
  ]],
  ["Storage", [
    ["encryptionEnabled", "Encrypt at rest", "bool", "With QUEEN_ENCRYPTION_KEY; without a key messages are stored as plain text, and the answer warns."],
  ]],
];

/** These are off when they are empty, which is not the same as 0. */
export const MAY_BE_EMPTY = new Set(["retryDelay", "ttl", "dedupWindowSeconds"]);
