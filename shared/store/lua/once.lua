-- Included by changes whose replay could not be told from a second request: the first answer is kept for a minute.

local ONCE_MS = 60000

local function answered(nonce)
  return redis.call('GET', key('once', nonce))
end

local function answer(nonce, outcome)
  redis.call('SET', key('once', nonce), outcome, 'PX', ONCE_MS)
  return outcome
end
