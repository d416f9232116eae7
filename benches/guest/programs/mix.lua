-- Permutations, tables, strings, closures, floats.
local function fannkuch(n)
  local p, q, s, sign, most, sum = {}, {}, {}, 1, 0, 0
  for i = 1, n do p[i] = i; q[i] = i; s[i] = i end
  repeat
    local q0 = p[1]
    if q0 ~= 1 then
      for i = 2, n do q[i] = p[i] end
      local flips = 1
      while true do
        local qq = q[q0]
        if qq == 1 then
          sum = sum + sign * flips
          if flips > most then most = flips end
          break
        end
        q[q0] = q0
        if q0 >= 4 then
          local i, j = 2, q0 - 1
          repeat q[i], q[j] = q[j], q[i]; i = i + 1; j = j - 1 until i >= j
        end
        q0 = qq; flips = flips + 1
      end
    end
    if sign == 1 then
      p[1], p[2] = p[2], p[1]; sign = -1
    else
      p[2], p[3] = p[3], p[2]; sign = 1
      for i = 3, n do
        local sx = s[i]
        if sx ~= 1 then s[i] = sx - 1; break end
        if i == n then return sum, most end
        s[i] = i
        local t = p[1]
        for j = 1, i do p[j] = p[j + 1] end
        p[i + 1] = t
      end
    end
  until false
end

local total = 0
for round = 1, tonumber(arg[1]) do
  local sum, most = fannkuch(7)
  total = total + sum + most
  local parts, found = {}, {}
  for i = 1, 3000 do
    local word = ("k%d"):format(i * 7919 % 1009)
    found[word] = (found[word] or 0) + i
    parts[#parts + 1] = word
  end
  local text = table.concat(parts, " ")
  for word in text:gmatch("k%d+5") do total = total + #word end
  local keys = {}
  for key in pairs(found) do keys[#keys + 1] = key end
  table.sort(keys)
  total = total + #keys + found[keys[1]]
  local x = 0.5
  for i = 1, 20000 do x = 3.7 * x * (1 - x) end
  total = total + math.floor(x * 1000)
end
print(total)
